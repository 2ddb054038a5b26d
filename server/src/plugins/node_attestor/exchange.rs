//! The conversation between an attestor and an agent.

use std::net::IpAddr;

use tokio::sync::mpsc;

use super::{AttestorFault, Code};

/// The attestor's end: it asks, the agent answers, any number of times.
pub struct Exchange {
    to_agent: mpsc::Sender<Vec<u8>>,
    from_agent: mpsc::Receiver<Vec<u8>>,
    caller: Option<IpAddr>,
}

/// The agent's end, held by whoever speaks to the agent.
pub struct AgentEnd {
    /// Ends when the attestor has come to its verdict.
    pub challenges: mpsc::Receiver<Vec<u8>>,
    /// Dropping it tells the attestor that the agent is gone.
    pub responses: mpsc::Sender<Vec<u8>>,
}

/// A new conversation.
pub fn pair() -> (Exchange, AgentEnd) {
    let (to_agent, challenges) = mpsc::channel(1);
    let (responses, from_agent) = mpsc::channel(1);
    (Exchange { to_agent, from_agent, caller: None }, AgentEnd { challenges, responses })
}

impl Exchange {
    /// The same conversation with an agent whose connection comes from this address.
    pub fn with_caller(self, caller: Option<IpAddr>) -> Exchange {
        Exchange { caller, ..self }
    }

    /// Where the agent's connection comes from; `None` when it came by no network.
    pub fn caller(&self) -> Option<IpAddr> {
        self.caller
    }

    /// Sends a challenge and waits for the answer.
    pub async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestorFault> {
        let gone = |text| AttestorFault::new(Code::Internal, text);
        self.to_agent.send(challenge).await.map_err(|_| gone("failed to send challenge to agent"))?;
        self.from_agent.recv().await.ok_or_else(|| gone("failed to receive challenge from agent"))
    }
}
