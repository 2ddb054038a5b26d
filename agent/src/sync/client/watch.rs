//! Push: a Finial server tells of each change as it happens (`finial.watch.v1`).

use finial_identity::TrustDomain;
use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_proto::finial::watch::v1::{Change, Held, watch_client::WatchClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{CallError, Client, MAX_ANSWER, failed, wire};

/// A change as the server pushed it.
pub struct Pushed {
    /// Whether `upserted`, `bundle` and `federated` are all there is.
    pub full: bool,
    pub upserted: Vec<Entry>,
    /// Entry IDs.
    pub deleted: Vec<String>,
    /// The own trust domain's bundle, when it changed.
    pub bundle: Option<Bundle>,
    pub federated: Vec<Bundle>,
    pub federated_gone: Vec<TrustDomain>,
    /// To open the next stream with.
    pub version: u64,
}

/// An open stream of changes.
pub struct Changes {
    answers: Streaming<Change>,
    held: mpsc::Sender<Held>,
}

impl Client {
    /// Opens the stream. `version` is what the agent has taken over last, 0 for nothing: then, or when the server does
    /// not know it, the first change is everything. Unimplemented on a stock server.
    pub async fn changes(&self, version: u64) -> Result<Changes, CallError> {
        let (held, helds) = mpsc::channel(1);
        // The channel has room for one.
        let _ = held.try_send(Held { version });
        let open = async {
            WatchClient::new(self.channel())
                .max_decoding_message_size(MAX_ANSWER)
                .authorized(ReceiverStream::new(helds))
                .await
                .map_err(failed)
        };
        let answers = self.limited("Authorized", open).await?.into_inner();
        Ok(Changes { answers, held })
    }
}

impl Changes {
    /// Waits for the next change.
    pub async fn next(&mut self) -> Result<Pushed, CallError> {
        let change = self.answers.message().await.map_err(failed)?;
        let change = change.ok_or_else(|| CallError::Unavailable("the server ended the watch".to_owned()))?;
        let read =
            |bundle| wire::bundle(bundle).map_err(|error| CallError::Malformed(format!("bundle: {error}")));
        Ok(Pushed {
            full: change.snapshot,
            upserted: wire::entries(change.upserted),
            deleted: change.deleted,
            bundle: change.bundle.map(read).transpose()?,
            federated: change.federated_bundles.into_iter().map(read).collect::<Result<_, _>>()?,
            federated_gone: change
                .federated_bundles_removed
                .iter()
                .filter_map(|name| TrustDomain::parse(name).ok())
                .collect(),
            version: change.version,
        })
    }

    /// Tells the server that a change has been taken over, so that it knows which nodes hold what.
    pub async fn acknowledge(&self, pushed: &Pushed) {
        // A stream that broke meanwhile shows at the next change.
        let _ = self.held.send(Held { version: pushed.version }).await;
    }
}
