//! Attestation: the one exchange that has no SVID yet.

use std::future::Future;
use std::time::Duration;

use finial_daemon::clock::Clock;
use finial_identity::bundle::Bundle;
use finial_identity::x509_svid::X509Svid;
use finial_proto::spire::api::server::agent::v1 as agent;
use finial_proto::spire::api::server::bundle::v1 as bundle;
use finial_proto::spire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{CallError, agents, failed, read_svid, wire};

/// How long a whole attestation may take. The server makes those of one address wait for each other.
const ATTESTATION_LIMIT: Duration = Duration::from_secs(120);

/// A connection without a client certificate.
pub struct Anonymous {
    channel: Channel,
    clock: Clock,
}

/// What the server made of the proof.
pub struct Proved {
    pub svid: X509Svid,
    /// Whether the node is to attest again instead of renewing.
    pub reattestable: bool,
}

impl Anonymous {
    pub(super) fn new(channel: Channel, clock: Clock) -> Anonymous {
        Anonymous { channel, clock }
    }

    /// Sends the proof (of type `kind`) and the CSR (PKCS#10, DER), and answers challenges with `respond`.
    pub async fn attest<F, E>(
        &self,
        kind: &str,
        payload: Vec<u8>,
        csr: Vec<u8>,
        respond: impl FnMut(Vec<u8>) -> F,
    ) -> Result<Result<Proved, CallError>, E>
    where
        F: Future<Output = Result<Vec<u8>, E>>,
    {
        let exchange = self.exchange(kind, payload, csr, respond);
        self.clock.timeout(ATTESTATION_LIMIT, exchange).await.unwrap_or(Ok(Err(CallError::TimedOut)))
    }

    /// The own trust domain's bundle, over this very connection.
    pub async fn bundle(&self) -> Result<Bundle, CallError> {
        let answer = super::bundles(self.channel.clone())
            .get_bundle(bundle::GetBundleRequest::default())
            .await
            .map_err(failed)?
            .into_inner();
        wire::bundle(answer).map_err(|error| CallError::Malformed(format!("bundle: {error}")))
    }

    async fn exchange<F, E>(
        &self,
        kind: &str,
        payload: Vec<u8>,
        csr: Vec<u8>,
        mut respond: impl FnMut(Vec<u8>) -> F,
    ) -> Result<Result<Proved, CallError>, E>
    where
        F: Future<Output = Result<Vec<u8>, E>>,
    {
        use agent::attest_agent_request::{Params, Step as Ask};
        use agent::attest_agent_response::Step as Answer;

        let ended = || CallError::Malformed("the attestation stream ended early".to_owned());
        let (ask, asked) = mpsc::channel(1);
        let params = Params {
            data: Some(types::AttestationData { r#type: kind.to_owned(), payload }),
            params: Some(agent::AgentX509svidParams { csr }),
        };
        // The channel has room for one.
        let _ = ask.try_send(agent::AttestAgentRequest { step: Some(Ask::Params(params)) });
        let mut answers = match agents(self.channel.clone()).attest_agent(ReceiverStream::new(asked)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Ok(Err(failed(status))),
        };
        loop {
            let answer = match answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Ok(Err(ended())),
                Err(status) => return Ok(Err(failed(status))),
            };
            match answer.step {
                Some(Answer::Challenge(challenge)) => {
                    let step = Some(Ask::ChallengeResponse(respond(challenge).await?));
                    if ask.send(agent::AttestAgentRequest { step }).await.is_err() {
                        return Ok(Err(ended()));
                    }
                }
                Some(Answer::Result(result)) => return Ok(proved(result)),
                None => return Ok(Err(CallError::Malformed("an empty attestation answer".to_owned()))),
            }
        }
    }
}

fn proved(result: agent::attest_agent_response::Result) -> Result<Proved, CallError> {
    let svid =
        result.svid.ok_or_else(|| CallError::Malformed("no SVID came with the attestation".to_owned()))?;
    let svid = read_svid(svid).map_err(|error| CallError::Malformed(format!("agent SVID: {error}")))?;
    Ok(Proved { svid, reattestable: result.reattestable })
}
