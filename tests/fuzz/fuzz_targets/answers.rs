//! What an agent reads from a server: entries and bundles.
//!
//! The file is compiled into this target, as what it holds is private to its crate.
#![no_main]

#[path = "../../../agent/src/sync/client/wire.rs"]
#[allow(dead_code, unreachable_pub)]
mod wire;

use finial_identity::bundle::document;
use finial_identity::{SpiffeId, TrustDomain};
use finial_proto::spire::api::server::entry::v1::SyncAuthorizedEntriesResponse;
use finial_proto::spire::api::types;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    if let Ok(answer) = SyncAuthorizedEntriesResponse::decode(data) {
        let sent = answer.entries.len();
        let read = wire::entries(answer.entries);
        assert!(read.len() <= sent);
        for entry in read {
            assert!(!entry.id.is_empty() && !entry.selectors.is_empty());
            assert!(entry.selectors.is_sorted(), "the index needs them sorted");
            assert_eq!(SpiffeId::parse(entry.spiffe_id.as_str()).as_ref(), Ok(&entry.spiffe_id));
        }
    }
    if let Ok(answer) = types::Bundle::decode(data)
        && let Ok(bundle) = wire::bundle(answer)
    {
        assert_eq!(TrustDomain::parse(bundle.trust_domain.name()).as_ref(), Ok(&bundle.trust_domain));
        let _ = document::to_pem(&bundle);
        let _ = document::to_json(&bundle);
    }
});
