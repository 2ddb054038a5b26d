//! What the server makes of entries, bundles and IDs that a caller sent: what it accepts keeps all rules, and told back
//! to a caller and sent again it is the same.
#![no_main]

use finial_identity::bundle::document;
use finial_identity::entry::dns_name;
use finial_identity::{SpiffeId, TrustDomain};
use finial_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, BatchUpdateEntryRequest};
use finial_proto::spire::api::types;
use finial_server::api::convert;
use finial_server::entries::new_entry::{self, Action};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(trust_domain) = TrustDomain::parse("example.org") else { unreachable!() };
    if let Ok(request) = BatchCreateEntryRequest::decode(data) {
        for entry in request.entries {
            create(entry, &trust_domain);
        }
    }
    if let Ok(request) = BatchUpdateEntryRequest::decode(data) {
        let mask = convert::read_entry_mask(request.input_mask.as_ref());
        for entry in request.entries {
            let draft = convert::read_entry(entry);
            match new_entry::check_update(draft, &mask, &trust_domain) {
                Ok(update) => {
                    assert_eq!(update.spiffe_id.is_some(), mask.spiffe_id);
                    assert_eq!(update.parent_id.is_some(), mask.parent_id);
                    assert_eq!(update.selectors.is_some(), mask.selectors);
                    assert!(update.spiffe_id.is_none_or(|id| is_workload(&id, &trust_domain)));
                    assert!(update.selectors.is_none_or(|s| !s.is_empty() && s.is_sorted()));
                }
                Err(fault) => assert!(!fault.message(Action::Update).is_empty()),
            }
        }
    }
    if let Ok(bundle) = types::Bundle::decode(data)
        && let Ok(read) = convert::read_bundle(&bundle, trust_domain.clone())
    {
        let told = convert::bundle(&read, Some(&convert::ALL_OF_BUNDLE));
        assert_eq!(convert::read_bundle(&told, trust_domain.clone()).as_ref().ok(), Some(&read));
        let _ = document::to_json(&read);
    }
});

fn create(entry: types::Entry, trust_domain: &TrustDomain) {
    let checked = match new_entry::check(convert::read_entry(entry), trust_domain) {
        Ok(checked) => checked,
        Err(fault) => return assert!(!fault.message(Action::Create).is_empty()),
    };
    assert!(!checked.id.is_empty());
    assert!(is_workload(&checked.spiffe_id, trust_domain));
    assert!(checked.parent_id.is_member_of(trust_domain) && !checked.parent_id.path().is_empty());
    assert!(!checked.selectors.is_empty() && checked.selectors.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(checked.dns_names.iter().all(|name| dns_name(name).is_ok()));
    assert!(checked.x509_svid_ttl >= 0 && checked.jwt_svid_ttl >= 0);

    let told = convert::entry(&checked, Some(&convert::ALL_OF_ENTRY));
    let again = new_entry::check(convert::read_entry(told), trust_domain);
    assert_eq!(again.as_ref(), Ok(&checked));
}

fn is_workload(id: &SpiffeId, trust_domain: &TrustDomain) -> bool {
    id.is_member_of(trust_domain) && !id.path().is_empty() && !id.is_reserved()
}
