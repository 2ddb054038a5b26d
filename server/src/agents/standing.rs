//! What an agent's SVID is worth right now.
//!
//! The server remembers the serial number of the SVID that each agent uses, and of the one it was given last when it
//! renewed. The second becomes the first when it is first used, and from then on the older one is worthless, on open
//! connections too.

use std::time::SystemTime;

use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509_svid::X509Svid;

use crate::store::agents::AttestedNode;
use crate::store::{Store, StoreError};

/// The outcome of [`of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Active,
    /// The SVID shown has expired.
    Expired,
    /// No such node: never attested, evicted or pruned.
    NotAttested,
    /// Another SVID is in use.
    NotActive {
        expected: String,
    },
    Banned,
}

/// What [`assess`] found: a standing, or the need to write first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assessment {
    Settled(Standing),
    /// The SVID that was handed out at the last renewal is used for the first time. Once the store says so, the agent is
    /// active.
    Promote,
}

/// The standing of the agent that shows this SVID. A promotion is written before the answer.
pub async fn of(store: &Store, svid: &X509Svid, now: SystemTime) -> Result<Standing, StoreError> {
    let serial = svid.serial_decimal();
    // An expired SVID is worth nothing whatever the store says.
    let mut node = if now > svid.not_after() { None } else { store.agents().get(svid.id()).await? };
    let mut assessment = assess(node.as_ref(), &serial, svid.not_after(), now);
    if assessment == Assessment::Promote {
        let promoted = store.agents().promote(svid.id(), &serial).await.inspect_err(|error| {
            tracing::warn!(
                agent_id = %svid.id(),
                svid_serial_num = serial,
                %error,
                "Unable to activate the new agent SVID"
            );
        })?;
        node = match promoted {
            Some(node) => Some(node),
            // Another call was faster: it promoted the same SVID, or replaced or banned it.
            None => store.agents().get(svid.id()).await?,
        };
        assessment = assess(node.as_ref(), &serial, svid.not_after(), now);
    }
    let standing = match assessment {
        Assessment::Settled(standing) => standing,
        Assessment::Promote => {
            Standing::NotActive { expected: node.map(|n| n.serial_number).unwrap_or_default() }
        }
    };
    log(svid.id(), &serial, &standing);
    Ok(standing)
}

/// The plain decision. `serial` is that of the SVID shown, in decimal, and `not_after` its end.
pub fn assess(
    node: Option<&AttestedNode>,
    serial: &str,
    not_after: SystemTime,
    now: SystemTime,
) -> Assessment {
    let standing = match node {
        _ if now > not_after => Standing::Expired,
        None => Standing::NotAttested,
        Some(node) if node.serial_number.is_empty() => Standing::Banned,
        Some(node) if node.serial_number == serial => Standing::Active,
        Some(node) if !serial.is_empty() && node.new_serial_number == serial => return Assessment::Promote,
        Some(node) => Standing::NotActive { expected: node.serial_number.clone() },
    };
    Assessment::Settled(standing)
}

fn log(id: &SpiffeId, serial: &str, standing: &Standing) {
    match standing {
        Standing::Active => {}
        Standing::Expired => tracing::error!(agent_id = %id, "Agent SVID is expired"),
        Standing::NotAttested => tracing::error!(agent_id = %id, "Agent is not attested"),
        Standing::Banned => tracing::error!(agent_id = %id, "Agent is banned"),
        Standing::NotActive { expected } => tracing::error!(
            agent_id = %id,
            svid_serial_num = serial,
            serial_num = expected,
            "Agent SVID is not active"
        ),
    }
}
