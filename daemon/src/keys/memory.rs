//! Keys that are gone when the process is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Key, KeyError, KeyManager, KeyType, generate_pair};

/// SPIRE's KeyManager `memory`.
#[derive(Default)]
pub struct MemoryKeys {
    keys: Mutex<BTreeMap<String, Arc<Key>>>,
}

impl MemoryKeys {
    pub fn new() -> MemoryKeys {
        MemoryKeys::default()
    }
}

#[async_trait]
impl KeyManager for MemoryKeys {
    async fn generate(&self, id: &str, key_type: KeyType) -> Result<Arc<Key>, KeyError> {
        if id.is_empty() {
            return Err(KeyError::EmptyId);
        }
        let key = Arc::new(Key::new(id, generate_pair(key_type).await?));
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(id.to_string(), Arc::clone(&key));
        Ok(key)
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<Key>>, KeyError> {
        Ok(self.keys.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned())
    }

    async fn list(&self) -> Result<Vec<Arc<Key>>, KeyError> {
        Ok(self.keys.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect())
    }
}
