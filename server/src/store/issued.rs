//! The log of what was issued: table `finial_issued`, each row chained to the one before by a hash.
//!
//! The hash of a row is SHA-256 over the hash before it and the row's canonical encoding, so a row that is changed,
//! removed or put in later breaks the chain from there on. The end of the chain and, after pruning, the place where it
//! starts are in `finial_meta`.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use finial_daemon::metrics::Metrics;
use tokio::sync::{mpsc, oneshot};

use super::dialect::{Row, Sql, Value, values};
use super::migrations::{meta, set_meta};
use super::{Bounds, Page, PageRequest, Store, StoreError};

/// A credential that was signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuedRecord {
    pub kind: IssuedKind,
    /// Of a certificate, in decimal; of a token, its `jti`, which may be empty.
    pub serial: String,
    pub spiffe_id: String,
    /// The entry that it was issued for; empty if there is none.
    pub entry_id: String,
    pub entry_revision: i64,
    /// The agent that asked for it; empty if none did.
    pub agent_id: String,
    /// What it was signed with: subject key ID in lowercase hex, or key ID.
    pub authority_id: String,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// SHA-256 of the subject's public key (PKIX DER), in lowercase hex; empty for a token.
    pub key_fingerprint: String,
}

/// What sort of credential it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum IssuedKind {
    /// An X.509-SVID of a workload, through its agent.
    #[default]
    Workload,
    /// An agent's X.509-SVID.
    Agent,
    /// A server's X.509-SVID.
    Server,
    /// An X.509-SVID that an administrator asked for.
    Minted,
    /// A CA certificate of this server.
    Ca,
    /// A CA certificate of a downstream server.
    DownstreamCa,
    /// A JWT-SVID of a workload, through its agent.
    Jwt,
    /// A JWT-SVID that an administrator asked for.
    MintedJwt,
    /// A WIT-SVID.
    Wit,
    /// Written by another release.
    Other(String),
}

/// A row of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedRow {
    /// 1 for the first, and so on without a gap.
    pub seq: i64,
    pub record: IssuedRecord,
    /// SHA-256, in lowercase hex.
    pub hash: String,
}

/// What to list: rows that pass every filter that is set.
#[derive(Clone, Debug, Default)]
pub struct ListIssued {
    /// Unix seconds.
    pub not_after_from: Option<i64>,
    /// Unix seconds, exclusive.
    pub not_after_before: Option<i64>,
    pub serial: Option<String>,
    pub spiffe_id: Option<String>,
    pub kind: Option<IssuedKind>,
    pub page: Option<PageRequest>,
}

/// A chain that verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many rows there are.
    pub rows: u64,
    /// The number of the last row, whether it is still there or pruned.
    pub last_seq: i64,
    /// Its hash: whoever keeps it elsewhere can tell later that nothing before it was changed.
    pub last_hash: String,
}

/// The log, for reading and pruning. From [`Store::issued`].
#[derive(Clone, Copy, Debug)]
pub struct IssuedRecords<'s> {
    pub(super) store: &'s Store,
}

impl IssuedRecords<'_> {
    /// Rows that pass the filters, in order of issue.
    pub async fn list(&self, list: &ListIssued) -> Result<Page<IssuedRow>, StoreError> {
        let bounds = Bounds::of(list.page.as_ref())?;
        let (condition, mut values) = filter(list);
        self.store
            .counted(&["finial.issued.list"])
            .read(move |sql| {
                let mut query = format!("{SELECT} WHERE {condition}");
                if let Some(bounds) = &bounds {
                    query.push_str(" AND seq > ? ORDER BY seq LIMIT ?");
                    values.extend([Value::Int(bounds.after), Value::Int(bounds.size.into())]);
                } else {
                    query.push_str(" ORDER BY seq");
                }
                let rows = sql.rows(&query, &values, |row| read(row).map(|row| (row.seq, row)))?;
                Ok(Page::new(rows, bounds.as_ref()))
            })
            .await
    }

    /// How many rows pass the filters. The page is not looked at.
    pub async fn count(&self, list: &ListIssued) -> Result<u64, StoreError> {
        let (condition, values) = filter(list);
        self.store
            .counted(&["finial.issued.count"])
            .read(move |sql| {
                let query = format!("SELECT COUNT(*) FROM finial_issued WHERE {condition}");
                Ok(sql.number(&query, &values)?.unsigned_abs())
            })
            .await
    }

    /// Goes through the whole chain.
    ///
    /// # Errors
    ///
    /// [`StoreError::ChainBroken`] with the first number that is wrong.
    pub async fn verify(&self) -> Result<Verified, StoreError> {
        self.store.counted(&["finial.issued.verify"]).read(verify).await
    }

    /// Deletes rows from the start of the log while they ended before `not_after_before` (unix seconds), at most `limit`;
    /// how many. A row that is still valid keeps all rows behind it. The chain starts at a checkpoint from then on.
    pub async fn prune(&self, not_after_before: i64, limit: u32) -> Result<usize, StoreError> {
        self.store
            .counted(&["finial.issued.prune"])
            .write(move |sql| prune(sql, not_after_before, limit))
            .await
    }
}

/// Writes the log. Clones write to the same one; the task ends, with everything written, when all are dropped.
#[derive(Clone, Debug)]
pub struct IssuedLog {
    to_task: mpsc::UnboundedSender<Message>,
    metrics: Metrics,
}

/// How [`IssuedLog`] gathers rows.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// The most rows in one transaction.
    pub rows: usize,
    /// How long a row waits for others.
    pub wait: Duration,
    /// The most rows in memory while none can be written; each takes about half a kilobyte.
    pub kept: usize,
}

impl Default for Batching {
    fn default() -> Batching {
        Batching { rows: 2048, wait: Duration::from_millis(50), kept: 200_000 }
    }
}

impl IssuedLog {
    /// The log, and the task that writes it; whoever calls this has it run.
    pub fn start(store: Store, batching: Batching) -> (IssuedLog, impl Future<Output = ()> + Send + 'static) {
        let (to_task, from_log) = mpsc::unbounded_channel();
        let metrics = store.metrics().clone();
        (IssuedLog { to_task, metrics }, write_batches(store, batching, from_log))
    }

    /// Notes that something was issued. Does not wait: the row is written with the next batch. If the database cannot be
    /// written, up to [`Batching::kept`] rows are kept in memory until it can; of more than that the number is logged.
    pub fn record(&self, record: IssuedRecord) {
        if let Some(word) = record.kind.counted_as() {
            self.metrics.count(&["server_ca", "sign", word], 1);
        }
        if self.to_task.send(Message::Record(Box::new(record))).is_err() {
            tracing::error!("The log of issued credentials is closed: a credential was not recorded");
        }
    }

    /// Waits until everything recorded before is written.
    ///
    /// # Errors
    ///
    /// Why it could not be written; it is tried again with the next batch. [`StoreError::Closed`] if the task ended.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let (done, written) = oneshot::channel();
        self.to_task.send(Message::Flush(done)).map_err(|_| StoreError::Closed)?;
        written.await.map_err(|_| StoreError::Closed)?
    }
}

impl IssuedKind {
    /// The last word of the counter of signatures.
    fn counted_as(&self) -> Option<&'static str> {
        match self {
            IssuedKind::Workload | IssuedKind::Agent | IssuedKind::Server | IssuedKind::Minted => {
                Some("x509_svid")
            }
            IssuedKind::DownstreamCa => Some("x509_ca_svid"),
            IssuedKind::Jwt | IssuedKind::MintedJwt => Some("jwt_svid"),
            IssuedKind::Wit => Some("wit_svid"),
            // Not for others.
            IssuedKind::Ca | IssuedKind::Other(_) => None,
        }
    }

    /// The name in the table.
    pub fn as_str(&self) -> &str {
        match self {
            IssuedKind::Workload => "x509-workload",
            IssuedKind::Agent => "x509-agent",
            IssuedKind::Server => "x509-server",
            IssuedKind::Minted => "x509-minted",
            IssuedKind::Ca => "x509-ca",
            IssuedKind::DownstreamCa => "x509-downstream-ca",
            IssuedKind::Jwt => "jwt-workload",
            IssuedKind::MintedJwt => "jwt-minted",
            IssuedKind::Wit => "wit-workload",
            IssuedKind::Other(name) => name,
        }
    }

    /// The kind of a name in the table.
    pub fn from_name(name: &str) -> IssuedKind {
        use IssuedKind::{Agent, Ca, DownstreamCa, Jwt, Minted, MintedJwt, Other, Server, Wit, Workload};
        [Workload, Agent, Server, Minted, Ca, DownstreamCa, Jwt, MintedJwt, Wit]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .unwrap_or_else(|| Other(name.to_owned()))
    }
}

/// The fingerprint of a public key in PKIX DER: SHA-256 in lowercase hex.
pub fn key_fingerprint(public_key_der: &[u8]) -> String {
    hex::encode(digest(&SHA256, public_key_der))
}

enum Message {
    Record(Box<IssuedRecord>),
    Flush(oneshot::Sender<Result<(), StoreError>>),
}

/// The longest pause between two tries to write.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

async fn write_batches(store: Store, batching: Batching, mut from_log: mpsc::UnboundedReceiver<Message>) {
    let mut batch: Vec<IssuedRecord> = Vec::new();
    let mut lost = 0_u64;
    let mut pause = batching.wait;
    let mut failing = false;
    loop {
        let mut flush = None;
        let mut open = true;
        if batch.is_empty() {
            match from_log.recv().await {
                Some(Message::Record(record)) => batch.push(*record),
                Some(Message::Flush(done)) => flush = Some(done),
                None => return,
            }
        }
        let wait = tokio::time::sleep(pause);
        tokio::pin!(wait);
        while flush.is_none() && (failing || batch.len() < batching.rows) {
            tokio::select! {
                biased;
                () = &mut wait => break,
                message = from_log.recv() => match message {
                    Some(Message::Record(record)) if batch.len() < batching.kept => batch.push(*record),
                    Some(Message::Record(_)) => lost += 1,
                    Some(Message::Flush(done)) => flush = Some(done),
                    None => {
                        open = false;
                        break;
                    }
                },
            }
        }

        let written = match batch.is_empty() {
            true => Ok(()),
            false => {
                let rows = Arc::new(std::mem::take(&mut batch));
                let written = {
                    let rows = Arc::clone(&rows);
                    store.write(move |sql| append(sql, &rows)).await
                };
                if written.is_err() {
                    batch = Arc::try_unwrap(rows).unwrap_or_else(|rows| rows.to_vec());
                }
                written
            }
        };
        match &written {
            Ok(()) => {
                let rows = std::mem::take(&mut lost);
                if rows > 0 {
                    tracing::error!(rows, "Issued credentials were not recorded: too many to keep in memory");
                }
                failing = false;
                pause = batching.wait;
            }
            Err(error) => {
                let first = !std::mem::replace(&mut failing, true);
                pause = (pause * 2).clamp(Duration::from_secs(1), LONGEST_PAUSE);
                // The store says itself that the database is away.
                if !error.is_outage() || first {
                    let rows = batch.len();
                    tracing::error!(%error, rows, "Failed to write the log of issued credentials; they are kept in memory");
                }
            }
        }
        if let Some(done) = flush {
            // Whoever asked may have gone.
            let _ = done.send(written);
        } else if !open {
            if !batch.is_empty() {
                tracing::error!(rows = batch.len(), "Issued credentials were not recorded");
            }
            return;
        }
    }
}

/// A place in the chain: the number and hash of a row.
struct Link {
    seq: i64,
    hash: [u8; 32],
}

impl Link {
    /// Before the first row.
    const START: Link = Link { seq: 0, hash: [0; 32] };

    fn next(&self, record: &IssuedRecord) -> Link {
        let seq = self.seq + 1;
        let mut bytes = self.hash.to_vec();
        let mut text = |text: &str| {
            bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        text(&record.serial);
        text(&record.spiffe_id);
        text(&record.entry_id);
        text(&record.agent_id);
        text(&record.authority_id);
        text(&record.key_fingerprint);
        text(record.kind.as_str());
        for number in [seq, record.entry_revision, record.not_before, record.not_after] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &bytes).as_ref());
        Link { seq, hash }
    }

    fn hash_text(&self) -> String {
        hex::encode(self.hash)
    }

    fn read(sql: &Sql<'_>, name: &str) -> Result<Link, StoreError> {
        let Some(text) = meta(sql, name)? else { return Ok(Link::START) };
        let parsed = text.split_once(':').and_then(|(seq, hash)| {
            let mut link = Link { seq: seq.parse().ok()?, hash: [0; 32] };
            hex::decode_to_slice(hash, &mut link.hash).ok()?;
            Some(link)
        });
        parsed.ok_or_else(|| broken(0, format!("{name} in finial_meta is not a number and a hash: {text:?}")))
    }

    fn write(&self, sql: &Sql<'_>, name: &str) -> Result<(), StoreError> {
        set_meta(sql, name, &format!("{}:{}", self.seq, self.hash_text()))
    }
}

/// Names in `finial_meta`: the last row ever written, and the last one that was pruned.
const HEAD: &str = "issued_head";
const CHECKPOINT: &str = "issued_checkpoint";

const SELECT: &str = "SELECT seq, serial, spiffe_id, entry_id, entry_revision, agent_id, authority_id, not_before, \
     not_after, key_fingerprint, kind, hash FROM finial_issued";

fn append(sql: &Sql<'_>, records: &[IssuedRecord]) -> Result<(), StoreError> {
    let mut head = Link::read(sql, HEAD)?;
    let mut rows = Vec::with_capacity(records.len());
    for record in records {
        head = head.next(record);
        let row = values![
            head.seq,
            &record.serial,
            &record.spiffe_id,
            &record.entry_id,
            record.entry_revision,
            &record.agent_id,
            &record.authority_id,
            record.not_before,
            record.not_after,
            &record.key_fingerprint,
            record.kind.as_str(),
            head.hash_text(),
        ];
        rows.push(row.to_vec());
    }
    sql.insert_rows(
        "INSERT INTO finial_issued (seq, serial, spiffe_id, entry_id, entry_revision, agent_id, authority_id, \
         not_before, not_after, key_fingerprint, kind, hash)",
        &rows,
    )?;
    head.write(sql, HEAD)
}

fn verify(sql: &Sql<'_>) -> Result<Verified, StoreError> {
    const PIECE: i64 = 1000;
    let head = Link::read(sql, HEAD)?;
    let mut link = Link::read(sql, CHECKPOINT)?;
    let mut rows = 0;
    loop {
        let query = format!("{SELECT} WHERE seq > ? ORDER BY seq LIMIT ?");
        let piece = sql.rows(&query, values![if rows == 0 { i64::MIN } else { link.seq }, PIECE], read)?;
        if piece.is_empty() {
            break;
        }
        for row in piece {
            let next = link.next(&row.record);
            if row.seq != next.seq {
                let cause = format!("the next row has number {}", row.seq);
                return Err(broken(next.seq, cause));
            }
            if row.hash != next.hash_text() {
                return Err(broken(row.seq, "the row and its hash do not belong together".to_owned()));
            }
            link = next;
            rows += 1;
        }
    }
    if (link.seq, link.hash) != (head.seq, head.hash) {
        return Err(broken(link.seq + 1, format!("the log was written up to number {}", head.seq)));
    }
    Ok(Verified { rows, last_seq: head.seq, last_hash: head.hash_text() })
}

fn prune(sql: &Sql<'_>, not_after_before: i64, limit: u32) -> Result<usize, StoreError> {
    let checkpoint = Link::read(sql, CHECKPOINT)?;
    let head = Link::read(sql, HEAD)?;
    let first_kept = sql.row(
        "SELECT MIN(seq) FROM finial_issued WHERE not_after >= ?",
        values![not_after_before],
        |row| row.opt_int(0),
    )?;
    let last_pruned = match first_kept.flatten() {
        Some(seq) => seq - 1,
        None => head.seq,
    };
    let last_pruned = last_pruned.min(checkpoint.seq.saturating_add(limit.into()));
    if last_pruned <= checkpoint.seq {
        return Ok(0);
    }
    let hash =
        sql.row("SELECT hash FROM finial_issued WHERE seq = ?", values![last_pruned], |row| row.text(0))?;
    let mut link = Link { seq: last_pruned, hash: [0; 32] };
    let readable = hash.is_some_and(|hash| hex::decode_to_slice(hash, &mut link.hash).is_ok());
    if !readable {
        return Err(broken(last_pruned, "the row or its hash is missing".to_owned()));
    }
    link.write(sql, CHECKPOINT)?;
    sql.run("DELETE FROM finial_issued WHERE seq <= ?", values![last_pruned])
}

fn read(row: &Row<'_>) -> Result<IssuedRow, StoreError> {
    Ok(IssuedRow {
        seq: row.int(0)?,
        record: IssuedRecord {
            serial: row.text(1)?,
            spiffe_id: row.text(2)?,
            entry_id: row.text(3)?,
            entry_revision: row.int(4)?,
            agent_id: row.text(5)?,
            authority_id: row.text(6)?,
            not_before: row.int(7)?,
            not_after: row.int(8)?,
            key_fingerprint: row.text(9)?,
            kind: IssuedKind::from_name(row.str(10)?),
        },
        hash: row.text(11)?,
    })
}

fn filter(list: &ListIssued) -> (String, Vec<Value<'static>>) {
    let mut conditions = vec!["0 = 0"];
    let mut values = Vec::new();
    let mut add = |condition, value: Option<Value<'static>>| {
        if let Some(value) = value {
            conditions.push(condition);
            values.push(value);
        }
    };
    add("not_after >= ?", list.not_after_from.map(Value::Int));
    add("not_after < ?", list.not_after_before.map(Value::Int));
    add("serial = ?", list.serial.clone().map(Value::from));
    add("spiffe_id = ?", list.spiffe_id.clone().map(Value::from));
    add("kind = ?", list.kind.as_ref().map(|kind| Value::from(kind.as_str().to_owned())));
    (conditions.join(" AND "), values)
}

fn broken(seq: i64, cause: String) -> StoreError {
    StoreError::ChainBroken { seq, cause }
}
