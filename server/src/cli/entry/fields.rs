//! The flags that say what an entry holds.

use finial_daemon::argv::text;
use finial_proto::spire::api::types::entry::AdditionalAttributes;
use finial_proto::spire::api::types::{Entry, Spiffeid};

use crate::cli::matching::{given, id, int32, selector};
use crate::cli::output::{Failure, fail};

#[derive(Debug, Default, clap::Args)]
pub struct Fields {
    /// The SPIFFE ID of the nodes, or of the alias of nodes, on which it appears
    #[arg(long = "parentID")]
    parent_id: Option<String>,
    /// The SPIFFE ID that is given
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
    /// A selector, type:value, for example unix:uid:1000. May be given more than once; all must be found
    #[arg(long = "selector", value_name = "value")]
    selectors: Vec<String>,
    /// How many seconds an X.509-SVID is valid; 0 takes the server's default
    #[arg(long = "x509SVIDTTL", value_name = "int", value_parser = text::integer)]
    x509_svid_ttl: Option<i64>,
    /// How many seconds a JWT-SVID is valid; 0 takes the server's default
    #[arg(long = "jwtSVIDTTL", value_name = "int", value_parser = text::integer)]
    jwt_svid_ttl: Option<i64>,
    /// A JSON file with entries, instead of all other flags; - reads standard input
    #[arg(long = "data")]
    pub data: Option<String>,
    /// A trust domain whose bundle the process gets too; the server must have it. May be given more than once
    #[arg(long = "federatesWith", value_name = "value")]
    federates_with: Vec<String>,
    /// Let whoever has the SPIFFE ID administrate the server over the network
    #[arg(long = "admin")]
    admin: bool,
    /// Let whoever has the SPIFFE ID, a nested server, ask for an intermediate CA
    #[arg(long = "downstream")]
    downstream: bool,
    /// Have agents put the SVID into a store, by an SVIDStore plugin, instead of giving it to processes
    #[arg(long = "storeSVID")]
    store_svid: bool,
    /// When the entry ends, in seconds since 1970; 0 means never
    #[arg(long = "entryExpiry", value_name = "int", value_parser = text::integer)]
    entry_expiry: Option<i64>,
    /// A DNS name for the certificate; the first one becomes its common name too. May be given more than once
    #[arg(long = "dns", value_name = "value")]
    dns_names: Vec<String>,
    /// A word by which a process tells several SVIDs apart
    #[arg(long = "hint")]
    hint: Option<String>,
    /// Make the X.509-SVID only when a process asks for it
    #[arg(long = "disableX509SVIDPrefetch", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_x509_svid_prefetch: Option<bool>,
    /// Give each JWT-SVID an ID of its own (jti), so that agents cannot keep it for the next request
    #[arg(long = "jwtSVIDIncludeJTI", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    jwt_svid_include_jti: Option<bool>,
}

impl Fields {
    /// The entry of `create`.
    pub fn new_entry(&self, entry_id: Option<&str>, node: bool) -> Result<Entry, Failure> {
        self.require_selectors()?;
        if node && !self.federates_with.is_empty() {
            return Err(fail("node entries can not federate"));
        }
        if given(&self.parent_id).is_none() && !node {
            return Err(fail("a parent ID is required if the node flag is not set"));
        }
        let spiffe_id = id(self.checked_spiffe_id()?)?;
        let parent_id = if node {
            Spiffeid { trust_domain: spiffe_id.trust_domain.clone(), path: "/spire/server".to_owned() }
        } else {
            id(given(&self.parent_id).unwrap_or_default())?
        };
        let mut entry = self.entry(entry_id, spiffe_id, parent_id)?;
        let attributes = AdditionalAttributes {
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch.unwrap_or(false),
            jwt_svid_include_jti: self.jwt_svid_include_jti.unwrap_or(false),
        };
        entry.additional_attributes = (attributes != AdditionalAttributes::default()).then_some(attributes);
        Ok(entry)
    }

    /// The entry of `update`, without its attributes.
    pub fn replacement(&self, entry_id: Option<&str>) -> Result<Entry, Failure> {
        if entry_id.is_none() {
            return Err(fail("entry ID is required"));
        }
        self.require_selectors()?;
        let parent_id = given(&self.parent_id).ok_or_else(|| fail("a parent ID is required"))?;
        let spiffe_id = self.checked_spiffe_id()?;
        let parent_id = id(parent_id)?;
        self.entry(entry_id, id(spiffe_id)?, parent_id)
    }

    /// Whether a flag names one of the attributes that `update` leaves as they are unless it is told otherwise.
    pub fn names_attributes(&self) -> bool {
        self.disable_x509_svid_prefetch.is_some() || self.jwt_svid_include_jti.is_some()
    }

    /// The known entry's attributes with those that flags name.
    pub fn merge_attributes(&self, entry: &mut Entry, known: &Entry) {
        let mut attributes = known.additional_attributes.unwrap_or_default();
        if let Some(given) = self.disable_x509_svid_prefetch {
            attributes.disable_x509_svid_prefetch = given;
        }
        if let Some(given) = self.jwt_svid_include_jti {
            attributes.jwt_svid_include_jti = given;
        }
        entry.additional_attributes = Some(attributes);
    }

    fn require_selectors(&self) -> Result<(), Failure> {
        if self.selectors.is_empty() { Err(fail("at least one selector is required")) } else { Ok(()) }
    }

    /// The last of the checks that come before any reading.
    fn checked_spiffe_id(&self) -> Result<&str, Failure> {
        let spiffe_id = given(&self.spiffe_id).ok_or_else(|| fail("a SPIFFE ID is required"))?;
        if self.x509_svid_ttl.is_some_and(i64::is_negative) {
            return Err(fail("a positive x509-SVID TTL is required"));
        }
        if self.jwt_svid_ttl.is_some_and(i64::is_negative) {
            return Err(fail("a positive JWT-SVID TTL is required"));
        }
        Ok(spiffe_id)
    }

    fn entry(
        &self,
        entry_id: Option<&str>,
        spiffe_id: Spiffeid,
        parent_id: Spiffeid,
    ) -> Result<Entry, Failure> {
        let x509_svid_ttl = int32("X509 SVID TTL", self.x509_svid_ttl.unwrap_or(0))?;
        let jwt_svid_ttl = int32("JWT SVID TTL", self.jwt_svid_ttl.unwrap_or(0))?;
        Ok(Entry {
            id: entry_id.unwrap_or_default().to_owned(),
            spiffe_id: Some(spiffe_id),
            parent_id: Some(parent_id),
            selectors: self.selectors.iter().map(|given| selector(given)).collect::<Result<_, _>>()?,
            x509_svid_ttl,
            federates_with: self.federates_with.clone(),
            admin: self.admin,
            downstream: self.downstream,
            expires_at: self.entry_expiry.unwrap_or(0),
            dns_names: self.dns_names.clone(),
            store_svid: self.store_svid,
            jwt_svid_ttl,
            hint: self.hint.clone().unwrap_or_default(),
            ..Entry::default()
        })
    }
}
