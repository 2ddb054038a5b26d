//! Asks the server for the JWT-SVIDs that workloads wait for.

use finial_daemon::clock::from_unix_seconds;
use finial_identity::jwt_svid::UnverifiedJwtSvid;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::{CallError, Client};
use crate::cache::{Cache, JwtFault, JwtRequest, JwtSvid};
use crate::own_svid::keep::News;

/// How many tokens are asked for at a time. More wait for their turn, so that one workload with many audiences does not
/// use up what the server grants this node.
const AT_ONCE: usize = 100;

/// Fetches for the cache.
pub struct JwtSvids {
    pub client: Client,
    pub cache: Cache,
    /// Tells the keeper of the agent's own SVID what the server thinks of it.
    pub news: mpsc::Sender<News>,
}

impl JwtSvids {
    /// Runs until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut running = FuturesUnordered::new();
        loop {
            let has_room = running.len() < AT_ONCE;
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = running.next(), if !running.is_empty() => {}
                request = self.cache.next_jwt_request(), if has_room => running.push(self.answer(request)),
            }
        }
    }

    async fn answer(&self, request: JwtRequest) {
        let answer = self.fetch(&request).await;
        if let Err(error) = &answer {
            tracing::error!(entry_id = request.entry.id, spiffe_id = %request.entry.spiffe_id, %error, "Failed to fetch JWT SVID");
            if let Some(news) = error.denial().map(News::Denied) {
                // The keeper is the one to act.
                let _ = self.news.send(news).await;
            }
        }
        self.cache.answer_jwt(request, answer.map_err(|error| fault(&error)));
    }

    async fn fetch(&self, request: &JwtRequest) -> Result<JwtSvid, CallError> {
        let entry = &request.entry;
        let signed = self.client.sign_jwt(&entry.id, &request.audience).await?;
        let malformed = |text: String| CallError::Malformed(format!("JWT-SVID: {text}"));
        let token = UnverifiedJwtSvid::read(&signed.token).map_err(|error| malformed(error.to_string()))?;
        // The entry may have changed on the server a moment ago.
        for id in [&signed.spiffe_id, token.id()] {
            if *id != entry.spiffe_id {
                return Err(malformed(format!("it is for {id} instead of {}", entry.spiffe_id)));
            }
        }
        Ok(JwtSvid {
            key_id: token.key_id().to_owned(),
            token: signed.token,
            spiffe_id: entry.spiffe_id.clone(),
            issued_at: from_unix_seconds(signed.issued_at),
            expires_at: from_unix_seconds(signed.expires_at),
        })
    }
}

/// What a workload is told: what the server said, in Go's form, but not how the agent reaches it.
fn fault(error: &CallError) -> JwtFault {
    let failed =
        |code: &str, text: &str| format!("failed to fetch JWT SVID: rpc error: code = {code} desc = {text}");
    match error {
        CallError::Unimplemented(text) => JwtFault::NotIssued(failed("Unimplemented", text)),
        CallError::Denied { text, .. } => JwtFault::Failed(failed("PermissionDenied", text)),
        CallError::NotFound(text) => JwtFault::Failed(failed("NotFound", text)),
        CallError::Refused { code, text } => JwtFault::Failed(failed(&format!("{code:?}"), text)),
        CallError::TimedOut => JwtFault::Failed(failed("DeadlineExceeded", "context deadline exceeded")),
        CallError::Unavailable(_) => JwtFault::Failed(failed("Unavailable", "the server can't be reached")),
        CallError::Malformed(_) => {
            JwtFault::Failed("failed to fetch JWT SVID: the server's answer can't be used".to_owned())
        }
    }
}
