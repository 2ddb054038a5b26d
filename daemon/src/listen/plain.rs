//! Connections without TLS.

use futures::StreamExt as _;

use super::authority::AuthorityRepair;
use super::{Conn, ConnInfo, Connections, Incoming};

/// Serves connections without TLS, the `:authority` of their requests repaired (see
/// [`super::authority`]).
pub fn plain(incoming: Incoming) -> Connections {
    incoming
        .map(|accepted| {
            accepted.map(|accepted| {
                let info = ConnInfo::new(accepted.origin, None);
                Conn::new(AuthorityRepair::new(accepted.io), info)
            })
        })
        .boxed()
}
