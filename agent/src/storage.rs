//! What the agent keeps over a restart: its own SVID and the bundle it trusts the server by.
//!
//! The file is SPIRE's `agent-data.json`, so either agent can take over from the other: a JSON object whose
//! `svid` and `bundle` are arrays of base64 of PEM certificates; three members tell how the agent is coming to believe its
//! server. Members that are not ours are kept as they are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use finial_daemon::argv::text;
use finial_daemon::clock::unix_seconds;
use finial_daemon::private_file;
use finial_identity::bundle::document;
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";
const FILE_NAME: &str = "agent-data.json";

/// Why the agent's data can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot read {}: {source}; check data_dir and its permissions", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; what was stored before stays; check the space and the permissions of data_dir", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {text}; remove it to attest this node anew", path.display())]
    Damaged { path: PathBuf, text: String },
    #[error("the task that wrote the agent's data was cut off")]
    CutOff,
}

/// The file in the data directory. Clones share it.
#[derive(Clone)]
pub struct Storage {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// Held while the file is written, so that the file always holds the newest state.
    data: Mutex<Data>,
}

#[derive(Clone, Default)]
struct Data {
    svid: Vec<CertificateDer<'static>>,
    reattestable: bool,
    bundle: Vec<CertificateDer<'static>>,
    trial: Trial,
    /// Members of the file that are not kept here.
    other: Map<String, Value>,
}

/// Attempts to come to believe the server: `bootstrap_use`, `bootstrap_start_time` and `connection_attempts`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trial {
    /// None in a new file.
    pub purpose: Option<Purpose>,
    /// When they began; None while the server is believed. Whole seconds are kept.
    pub since: Option<SystemTime>,
    /// How often the configured source of the bundle was asked.
    pub attempts: u32,
}

/// What the bundle is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The agent has never believed a server.
    Bootstrap,
    /// It has, and does no longer.
    Rebootstrap,
}

/// The agent's own SVID as it was stored.
pub struct StoredSvid {
    /// DER, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the node is to attest again instead of renewing.
    pub reattestable: bool,
}

impl Storage {
    /// Reads the file in `data_dir`; a missing one is an empty one. Blocking.
    pub fn open(data_dir: &Path) -> Result<Storage, StorageError> {
        let path = data_dir.join(FILE_NAME);
        let data = match std::fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|text| StorageError::Damaged { path: path.clone(), text })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Data::default(),
            Err(source) => return Err(StorageError::Read { path, source }),
        };
        Ok(Storage { shared: Arc::new(Shared { path, data: Mutex::new(data) }) })
    }

    /// The stored SVID, if there is one.
    pub fn svid(&self) -> Option<StoredSvid> {
        let data = self.shared.data.lock().unwrap_or_else(PoisonError::into_inner);
        (!data.svid.is_empty())
            .then(|| StoredSvid { chain: data.svid.clone(), reattestable: data.reattestable })
    }

    /// The stored authorities of the own trust domain, DER; empty when nothing is stored.
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        self.shared.data.lock().unwrap_or_else(PoisonError::into_inner).bundle.clone()
    }

    /// The attempts to come to believe the server.
    pub fn trial(&self) -> Trial {
        self.shared.data.lock().unwrap_or_else(PoisonError::into_inner).trial
    }

    /// Stores them. Writes nothing when they are stored already.
    pub async fn store_trial(&self, trial: Trial) -> Result<(), StorageError> {
        if self.trial() == trial {
            return Ok(());
        }
        self.change(move |data| data.trial = trial).await
    }

    /// Forgets SVID and bundle, so that the next start begins anew.
    pub async fn start_over(&self, trial: Trial) -> Result<(), StorageError> {
        self.change(move |data| {
            data.svid = Vec::new();
            data.reattestable = false;
            data.bundle = Vec::new();
            data.trial = trial;
        })
        .await
    }

    /// Stores the SVID (DER, leaf first).
    pub async fn store_svid(
        &self,
        chain: Vec<CertificateDer<'static>>,
        reattestable: bool,
    ) -> Result<(), StorageError> {
        self.change(move |data| {
            data.svid = chain;
            data.reattestable = reattestable;
        })
        .await
    }

    /// Forgets the SVID.
    pub async fn delete_svid(&self) -> Result<(), StorageError> {
        self.store_svid(Vec::new(), false).await
    }

    /// Stores the authorities (DER). Writes nothing when they are stored already.
    pub async fn store_bundle(&self, bundle: Vec<CertificateDer<'static>>) -> Result<(), StorageError> {
        if self.bundle() == bundle {
            return Ok(());
        }
        self.change(move |data| data.bundle = bundle).await
    }

    async fn change(&self, edit: impl FnOnce(&mut Data) + Send + 'static) -> Result<(), StorageError> {
        let shared = self.shared.clone();
        let write = move || {
            let mut data = shared.data.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = data.clone();
            edit(&mut changed);
            private_file::replace(&shared.path, encode(&changed).as_bytes())
                .map_err(|source| StorageError::Write { path: shared.path.clone(), source })?;
            *data = changed;
            Ok(())
        };
        tokio::task::spawn_blocking(write).await.map_err(|_| StorageError::CutOff)?
    }
}

fn encode(data: &Data) -> String {
    let pem = |der: &CertificateDer<'_>| Value::from(STANDARD.encode(document::certificate_pem(der)));
    let list =
        |certificates: &[CertificateDer<'_>]| Value::from(certificates.iter().map(pem).collect::<Vec<_>>());
    let mut file = Map::new();
    file.insert("svid".to_owned(), list(&data.svid));
    file.insert("bundle".to_owned(), list(&data.bundle));
    file.insert("reattestable".to_owned(), Value::from(data.reattestable));
    let purpose = match data.trial.purpose {
        None => 0,
        Some(Purpose::Bootstrap) => 1,
        Some(Purpose::Rebootstrap) => 2,
    };
    let since = data.trial.since.map_or_else(|| NEVER.to_owned(), |since| text::rfc3339(unix_seconds(since)));
    file.insert("bootstrap_use".to_owned(), Value::from(purpose));
    file.insert("bootstrap_start_time".to_owned(), Value::from(since));
    file.insert("connection_attempts".to_owned(), Value::from(data.trial.attempts));
    for (name, value) in &data.other {
        file.insert(name.clone(), value.clone());
    }
    Value::Object(file).to_string()
}

fn decode(bytes: &[u8]) -> Result<Data, String> {
    let Value::Object(mut file) = serde_json::from_slice(bytes).map_err(|error| error.to_string())? else {
        return Err("it is no JSON object".to_owned());
    };
    let svid = certificates(file.remove("svid"), "svid")?;
    let bundle = certificates(file.remove("bundle"), "bundle")?;
    let reattestable = match file.remove("reattestable") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(reattestable)) => reattestable,
        Some(_) => return Err("\"reattestable\" is no boolean".to_owned()),
    };
    let trial = read_trial(&mut file)?;
    Ok(Data { svid, reattestable, bundle, trial, other: file })
}

fn read_trial(file: &mut Map<String, Value>) -> Result<Trial, String> {
    let mut number = |name: &str| match file.remove(name) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.ok_or_else(|| format!("{name:?} is no number"))
        }
    };
    let purpose = match number("bootstrap_use")? {
        1 => Some(Purpose::Bootstrap),
        2 => Some(Purpose::Rebootstrap),
        _ => None,
    };
    let attempts = number("connection_attempts")?;
    let since = match file.remove("bootstrap_start_time") {
        None | Some(Value::Null) => None,
        Some(value) if value == NEVER => None,
        Some(value) => {
            let time = value.as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
            Some(time.ok_or("\"bootstrap_start_time\" is no time")?.into())
        }
    };
    Ok(Trial { purpose, since, attempts })
}

fn certificates(value: Option<Value>, name: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(format!("{name:?} is no list")),
    };
    let mut certificates = Vec::with_capacity(list.len());
    for one in list {
        let text = one.as_str().ok_or_else(|| format!("{name:?} holds something else than text"))?;
        let pem = STANDARD.decode(text).map_err(|error| format!("{name:?}: {error}"))?;
        certificates
            .extend(document::certificates_from_pem(&pem).map_err(|error| format!("{name:?}: {error}"))?);
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    fn certificate() -> CertificateDer<'static> {
        rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.der().clone()
    }

    #[tokio::test]
    async fn what_is_stored_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (leaf, root) = (certificate(), certificate());
        let storage = Storage::open(folder.path()).unwrap();
        assert!(storage.svid().is_none());
        assert!(storage.bundle().is_empty());
        storage.store_svid(vec![leaf.clone(), root.clone()], true).await.unwrap();
        storage.store_bundle(vec![root.clone()]).await.unwrap();

        let storage = Storage::open(folder.path()).unwrap();
        let svid = storage.svid().unwrap();
        assert_eq!((svid.chain, svid.reattestable), (vec![leaf, root.clone()], true));
        assert_eq!(storage.bundle(), vec![root.clone()]);
        storage.delete_svid().await.unwrap();
        let storage = Storage::open(folder.path()).unwrap();
        assert!(storage.svid().is_none());
        assert_eq!(storage.bundle(), [root]);
    }

    #[tokio::test]
    async fn members_of_others_survive() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE_NAME);
        std::fs::write(
            &file,
            r#"{"svid":null,"bundle":null,"reattestable":false,"bootstrap_use":2,"later":[1]}"#,
        )
        .unwrap();
        let storage = Storage::open(folder.path()).unwrap();
        assert_eq!(storage.trial().purpose, Some(Purpose::Rebootstrap));
        storage.store_bundle(vec![certificate()]).await.unwrap();
        let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!((&written["bootstrap_use"], &written["later"]), (&json!(2), &json!([1])));
        assert_eq!(written["bootstrap_start_time"], "0001-01-01T00:00:00Z");
    }

    #[tokio::test]
    async fn attempts_are_told_as_spire_tells_them() {
        let folder = tempfile::tempdir().unwrap();
        let since = UNIX_EPOCH + Duration::from_secs(1_795_300_381);
        let trial = Trial { purpose: Some(Purpose::Bootstrap), since: Some(since), attempts: 3 };
        let storage = Storage::open(folder.path()).unwrap();
        assert_eq!(storage.trial(), Trial::default());
        storage.store_trial(trial).await.unwrap();
        let file = folder.path().join(FILE_NAME);
        let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let told = json!([1, "2026-11-21T22:33:01Z", 3]);
        assert_eq!(
            json!([
                written["bootstrap_use"],
                written["bootstrap_start_time"],
                written["connection_attempts"]
            ]),
            told
        );
        assert_eq!(Storage::open(folder.path()).unwrap().trial(), trial);
        // Go writes fractions and the zone of the machine.
        let other = r#"{"bootstrap_use":2,"bootstrap_start_time":"2026-11-22T00:33:01.5+02:00"}"#;
        std::fs::write(&file, other).unwrap();
        let read = Storage::open(folder.path()).unwrap().trial();
        assert_eq!(read.since, Some(since + Duration::from_millis(500)));

        storage.store_svid(vec![certificate()], true).await.unwrap();
        storage.store_bundle(vec![certificate()]).await.unwrap();
        storage.start_over(trial).await.unwrap();
        let anew = Storage::open(folder.path()).unwrap();
        assert!(anew.svid().is_none() && anew.bundle().is_empty());
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE_NAME);
        for text in ["", "{", "[]", r#"{"svid":["!"]}"#, r#"{"bundle":7}"#, r#"{"svid":["bm8gY2VydA=="]}"#] {
            std::fs::write(&file, text).unwrap();
            let error = Storage::open(folder.path()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("agent-data.json is damaged"), "{text}: {error}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn a_failed_write_keeps_what_was_stored() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path()).unwrap();
        let root = certificate();
        storage.store_bundle(vec![root.clone()]).await.unwrap();
        std::fs::create_dir(folder.path().join("agent-data.json.tmp")).unwrap();
        storage.store_bundle(vec![certificate()]).await.unwrap_err();
        assert_eq!(storage.bundle(), [root]);
    }
}
