//! A key manager whose calls are counted.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Key, KeyError, KeyManager, KeyType};
use crate::metrics::{Metrics, UNKNOWN};

/// The words under which the calls are counted; SPIRE's programs have different ones.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    pub generate: &'static [&'static str],
    pub get: &'static [&'static str],
    pub list: &'static [&'static str],
}

/// The same keys as those of `keys`.
pub fn counted(keys: Arc<dyn KeyManager>, metrics: Metrics, words: Words) -> Arc<dyn KeyManager> {
    Arc::new(Counted { keys, metrics, words })
}

struct Counted {
    keys: Arc<dyn KeyManager>,
    metrics: Metrics,
    words: Words,
}

#[async_trait]
impl KeyManager for Counted {
    async fn generate(&self, id: &str, key_type: KeyType) -> Result<Arc<Key>, KeyError> {
        self.metrics.timed(self.words.generate, |_| UNKNOWN, self.keys.generate(id, key_type)).await
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<Key>>, KeyError> {
        self.metrics.timed(self.words.get, |_| UNKNOWN, self.keys.get(id)).await
    }

    async fn list(&self) -> Result<Vec<Arc<Key>>, KeyError> {
        self.metrics.timed(self.words.list, |_| UNKNOWN, self.keys.list()).await
    }
}
