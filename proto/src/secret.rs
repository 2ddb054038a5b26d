//! `Debug` for messages that hold a private key: everything but the key.

use std::fmt;

use crate::{
    envoy::{config::core::v3::DataSource, service::discovery::v3::DiscoveryResponse},
    spire::api::agent::delegatedidentity::v1::X509svidWithKey,
    workload,
};

/// Stands in for a key.
struct Hidden;

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<private key>")
    }
}

impl fmt::Debug for workload::X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("x509_svid", &self.x509_svid)
            .field("x509_svid_key", &Hidden)
            .field("bundle", &self.bundle)
            .field("hint", &self.hint)
            .finish()
    }
}

impl fmt::Debug for workload::Witsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witsvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("wit_svid", &self.wit_svid)
            .field("wit_svid_key", &Hidden)
            .field("hint", &self.hint)
            .finish()
    }
}

impl fmt::Debug for X509svidWithKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svidWithKey")
            .field("x509_svid", &self.x509_svid)
            .field("x509_svid_key", &Hidden)
            .finish()
    }
}

impl fmt::Debug for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSource").field("specifier", &Hidden).finish()
    }
}

impl fmt::Debug for DiscoveryResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryResponse")
            .field("version_info", &self.version_info)
            .field("resources", &format_args!("{} resources", self.resources.len()))
            .field("type_url", &self.type_url)
            .field("nonce", &self.nonce)
            .finish()
    }
}
