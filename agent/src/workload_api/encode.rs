//! From views to the messages of the Workload API. Chains, keys and bundles are shared, not copied.

use finial_proto::workload::{X509BundlesResponse, X509svid, X509svidResponse};

use crate::cache::View;

/// All that a workload gets with FetchX509SVID.
pub(super) fn x509_svids(view: &View) -> X509svidResponse {
    let bundle = view.bundle.as_ref().map(|bundle| bundle.x509.clone()).unwrap_or_default();
    let svids = view.shown().map(|identity| X509svid {
        spiffe_id: identity.svid.spiffe_id.to_string(),
        x509_svid: identity.svid.chain.clone(),
        x509_svid_key: identity.svid.key.clone(),
        bundle: bundle.clone(),
        hint: identity.entry.hint.clone(),
    });
    X509svidResponse {
        svids: svids.collect(),
        crl: Vec::new(),
        federated_bundles: view
            .federated
            .iter()
            .map(|other| (other.id.clone(), other.x509.clone()))
            .collect(),
    }
}

/// All that a workload gets with FetchX509Bundles.
pub(super) fn x509_bundles(view: &View) -> X509BundlesResponse {
    let known = view.bundle.iter().chain(&view.federated);
    X509BundlesResponse {
        crl: Vec::new(),
        bundles: known.map(|bundle| (bundle.id.clone(), bundle.x509.clone())).collect(),
    }
}
