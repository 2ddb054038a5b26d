//! Keys in a file, in the format of SPIRE's KeyManager `disk`: `{"keys": {"<id>": "<base64 PKCS#8>"}}`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::local::KeyPair;
use super::{Key, KeyError, KeyManager, KeyType};
use crate::private_file;

type Keys = BTreeMap<String, Arc<Key>>;

/// SPIRE's KeyManager `disk`. The file is read once, at [`DiskKeys::open`], and written as a whole at each
/// new key; two processes on one file overwrite each other's keys.
pub struct DiskKeys {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    keys: ArcSwap<Keys>,
    /// Held while the file is written and until `keys` says the same as the file.
    writing: Mutex<()>,
}

impl DiskKeys {
    /// Loads the keys; a file that does not exist yet holds none. Refuses a damaged file, naming the key.
    pub async fn open(path: impl Into<PathBuf>) -> Result<DiskKeys, KeyError> {
        let path = path.into();
        let (path, keys) = tokio::task::spawn_blocking(move || read(&path).map(|keys| (path, keys)))
            .await
            .map_err(|_| KeyError::CutOff)??;
        let inner = Inner { path, keys: ArcSwap::from_pointee(keys), writing: Mutex::new(()) };
        Ok(DiskKeys { inner: Arc::new(inner) })
    }
}

#[async_trait]
impl KeyManager for DiskKeys {
    async fn generate(&self, id: &str, key_type: KeyType) -> Result<Arc<Key>, KeyError> {
        if id.is_empty() {
            return Err(KeyError::EmptyId);
        }
        let (inner, id) = (Arc::clone(&self.inner), id.to_string());
        // One closure from key to file to memory: a caller that goes away cannot leave them different.
        tokio::task::spawn_blocking(move || inner.generate(&id, key_type))
            .await
            .map_err(|_| KeyError::CutOff)?
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<Key>>, KeyError> {
        Ok(self.inner.keys.load().get(id).cloned())
    }

    async fn list(&self) -> Result<Vec<Arc<Key>>, KeyError> {
        Ok(self.inner.keys.load().values().cloned().collect())
    }
}

impl Inner {
    fn generate(&self, id: &str, key_type: KeyType) -> Result<Arc<Key>, KeyError> {
        let key = Arc::new(Key::new(id, KeyPair::generate(key_type)?));
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = Keys::clone(&self.keys.load());
        keys.insert(id.to_string(), Arc::clone(&key));
        write(&self.path, &keys)?;
        self.keys.store(Arc::new(keys));
        Ok(key)
    }
}

#[derive(Deserialize)]
struct StoredFile {
    #[serde(default)]
    keys: Option<BTreeMap<String, Secret>>,
}

#[derive(Serialize)]
struct WrittenFile<'a> {
    keys: BTreeMap<&'a str, Secret>,
}

/// The base64 of a private key, wiped when dropped.
#[derive(Deserialize, Serialize)]
#[serde(transparent)]
struct Secret(String);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

fn read(path: &Path) -> Result<Keys, KeyError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Keys::new()),
        Err(source) => return Err(KeyError::Read { path: path.to_path_buf(), source }),
    };
    warn_when_readable_by_others(path);
    let damaged = |text: String| KeyError::Damaged { path: path.to_path_buf(), text };
    let stored: StoredFile = serde_json::from_slice(&bytes).map_err(|error| damaged(describe(&error)))?;
    let mut keys = Keys::new();
    for (id, secret) in stored.keys.unwrap_or_default() {
        let pkcs8 = STANDARD
            .decode(secret.0.as_bytes())
            .map(Zeroizing::new)
            .map_err(|error| damaged(format!("the key {id:?} is not base64: {error}")))?;
        let pair =
            KeyPair::from_pkcs8(&pkcs8).map_err(|error| damaged(format!("the key {id:?}: {error}")))?;
        keys.insert(id.clone(), Arc::new(Key::new(&id, pair)));
    }
    Ok(keys)
}

fn write(path: &Path, keys: &Keys) -> Result<(), KeyError> {
    let mut file = WrittenFile { keys: BTreeMap::new() };
    for (id, key) in keys {
        file.keys.insert(id, Secret(STANDARD.encode(key.pair.to_pkcs8()?.as_slice())));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(8 * 1024));
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut *bytes, formatter);
    file.serialize(&mut serializer).map_err(|_| KeyError::Encode)?;
    private_file::replace(path, &bytes).map_err(|source| KeyError::Write { path: path.to_path_buf(), source })
}

/// What is wrong with the JSON, without quoting any of it: the text may be a key.
fn describe(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "the JSON ends too early",
        serde_json::error::Category::Data => "the JSON is not {\"keys\": {\"<id>\": \"<base64>\"}}",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "the text is not JSON",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

fn warn_when_readable_by_others(path: &Path) {
    let Ok(metadata) = std::fs::metadata(path) else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = %format_args!("{mode:04o}"),
            "Key file can be read or written by other users; run chmod 600 on it"
        );
    }
}

#[cfg(test)]
mod tests;
