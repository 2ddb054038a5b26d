//! Wire <-> identity: what `types.*` messages say, as values, and back.

use std::collections::{BTreeMap, BTreeSet};

use der::Decode;
use finial_daemon::clock::unix_seconds;
use finial_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use finial_identity::entry::{AdditionalAttributes, Entry};
use finial_identity::selector::{Selector, SelectorError, SelectorMatch};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use finial_identity::x509_svid::{AuthorityCertificate, Malformed, X509Svid, split_concatenated};
use finial_proto::spire::api::types;

use crate::entries::new_entry::{self, EntryDraft, EntryMask, IdDraft, IdFault};
use crate::store::PageRequest;
use crate::store::agents::AttestedNode;

/// `{trust_domain, path}`; the trust domain may be given as a URI, as in SPIRE.
fn draft_of_id(id: Option<types::Spiffeid>) -> Option<IdDraft> {
    id.map(|id| IdDraft { trust_domain: id.trust_domain, path: id.path })
}

/// Any ID of the trust domain with a path.
pub fn read_member(id: Option<types::Spiffeid>, own: &TrustDomain) -> Result<SpiffeId, IdFault> {
    new_entry::member(draft_of_id(id), own)
}

/// An ID that an entry or a workload may have: of the trust domain, and not reserved.
pub fn read_workload(id: Option<types::Spiffeid>, own: &TrustDomain) -> Result<SpiffeId, IdFault> {
    new_entry::workload(draft_of_id(id), own)
}

/// The ID of an agent: `/spire/agent/...` in the trust domain.
pub fn read_agent(id: Option<types::Spiffeid>, own: &TrustDomain) -> Result<SpiffeId, IdFault> {
    let id = draft_of_id(id).ok_or(IdFault::Absent)?.read()?;
    id.agent_in(own)?;
    Ok(id)
}

pub fn id(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

pub fn read_selectors(selectors: Vec<types::Selector>) -> Result<Vec<Selector>, SelectorError> {
    selectors.into_iter().map(|s| Selector::new(s.r#type, s.value)).collect()
}

pub fn selectors(selectors: &[Selector]) -> Vec<types::Selector> {
    selectors
        .iter()
        .map(|s| types::Selector { r#type: s.kind.to_string(), value: s.value.to_string() })
        .collect()
}

/// EXACT, SUBSET, SUPERSET, ANY: the numbers are the same for selectors and for trust domains.
pub fn read_match(number: i32) -> Result<SelectorMatch, UnknownMatch> {
    SelectorMatch::from_number(number).ok_or(UnknownMatch(number))
}

/// A way of matching that has no meaning.
#[derive(Debug, thiserror::Error)]
#[error("unhandled match behavior {0}")]
pub struct UnknownMatch(i32);

/// The part of a list that is asked for; all of it when the size is not positive.
pub fn read_page(size: i32, token: String) -> Option<PageRequest> {
    u32::try_from(size).ok().filter(|size| *size > 0).map(|size| PageRequest { token, size })
}

/// An entry as it was sent, unchecked.
pub fn read_entry(entry: types::Entry) -> EntryDraft {
    EntryDraft {
        id: entry.id,
        spiffe_id: draft_of_id(entry.spiffe_id),
        parent_id: draft_of_id(entry.parent_id),
        selectors: entry.selectors.into_iter().map(|s| (s.r#type, s.value)).collect(),
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with: entry.federates_with,
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at,
        dns_names: entry.dns_names,
        store_svid: entry.store_svid,
        hint: entry.hint,
        additional_attributes: entry.additional_attributes.map(|a| AdditionalAttributes {
            disable_x509_svid_prefetch: a.disable_x509_svid_prefetch,
            jwt_svid_include_jti: a.jwt_svid_include_jti,
            unknown: Vec::new(),
        }),
    }
}

/// An ID as it was sent, for the log.
pub fn id_text(id: &types::Spiffeid) -> String {
    format!("spiffe://{}{}", id.trust_domain, id.path)
}

/// What stands for bytes in the log; nothing stands for none.
pub fn sha256_hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return String::new();
    }
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// Selectors as they were sent, for the log.
pub fn selectors_text(selectors: &[types::Selector]) -> String {
    let texts: Vec<String> = selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    texts.join(",")
}

/// Which fields an update takes over; all of them without a mask.
pub fn read_entry_mask(mask: Option<&types::EntryMask>) -> EntryMask {
    let Some(mask) = mask else { return EntryMask::ALL };
    EntryMask {
        spiffe_id: mask.spiffe_id,
        parent_id: mask.parent_id,
        selectors: mask.selectors,
        x509_svid_ttl: mask.x509_svid_ttl,
        jwt_svid_ttl: mask.jwt_svid_ttl,
        federates_with: mask.federates_with,
        admin: mask.admin,
        downstream: mask.downstream,
        expires_at: mask.expires_at,
        dns_names: mask.dns_names,
        store_svid: mask.store_svid,
        hint: mask.hint,
        additional_attributes: mask.additional_attributes,
    }
}

/// An entry with the fields that the mask asks for; all of them without a mask. The ID is always there.
pub fn entry(entry: &Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let all = ALL_OF_ENTRY;
    let mask = mask.unwrap_or(&all);
    types::Entry {
        id: entry.id.clone(),
        spiffe_id: mask.spiffe_id.then(|| id(&entry.spiffe_id)),
        parent_id: mask.parent_id.then(|| id(&entry.parent_id)),
        selectors: if mask.selectors { selectors(&entry.selectors) } else { Vec::new() },
        x509_svid_ttl: if mask.x509_svid_ttl { entry.x509_svid_ttl } else { 0 },
        federates_with: if mask.federates_with {
            entry.federates_with.iter().map(|td| td.name().to_owned()).collect()
        } else {
            Vec::new()
        },
        admin: mask.admin && entry.admin,
        downstream: mask.downstream && entry.downstream,
        expires_at: if mask.expires_at { entry.expires_at } else { 0 },
        dns_names: if mask.dns_names { entry.dns_names.clone() } else { Vec::new() },
        revision_number: if mask.revision_number { entry.revision_number } else { 0 },
        store_svid: mask.store_svid && entry.store_svid,
        jwt_svid_ttl: if mask.jwt_svid_ttl { entry.jwt_svid_ttl } else { 0 },
        hint: if mask.hint { entry.hint.clone() } else { String::new() },
        created_at: if mask.created_at { entry.created_at } else { 0 },
        additional_attributes: entry
            .additional_attributes
            .as_ref()
            .filter(|_| mask.additional_attributes)
            .map(|a| types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: a.disable_x509_svid_prefetch,
                jwt_svid_include_jti: a.jwt_svid_include_jti,
            }),
    }
}

pub const ALL_OF_ENTRY: types::EntryMask = types::EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: true,
    dns_names: true,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: true,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// An agent with the fields that the mask asks for. The ID is always there.
pub fn agent(node: &AttestedNode, mask: Option<&types::AgentMask>) -> types::Agent {
    let all = types::AgentMask {
        attestation_type: true,
        x509svid_serial_number: true,
        x509svid_expires_at: true,
        selectors: true,
        banned: true,
        can_reattest: true,
        agent_version: true,
    };
    let mask = mask.unwrap_or(&all);
    let text = |wanted: bool, text: &str| if wanted { text.to_owned() } else { String::new() };
    types::Agent {
        id: Some(id(&node.spiffe_id)),
        attestation_type: text(mask.attestation_type, &node.attestation_type),
        x509svid_serial_number: text(mask.x509svid_serial_number, &node.serial_number),
        x509svid_expires_at: if mask.x509svid_expires_at { node.expires_at } else { 0 },
        selectors: if mask.selectors { selectors(&node.selectors) } else { Vec::new() },
        banned: mask.banned && node.serial_number.is_empty(),
        can_reattest: mask.can_reattest && node.can_reattest,
        agent_version: text(mask.agent_version, &node.agent_version),
    }
}

/// A chain, leaf first, without the root.
pub fn svid(svid: &X509Svid) -> types::X509svid {
    types::X509svid {
        cert_chain: svid.chain().iter().map(|der| der.as_ref().to_vec()).collect(),
        id: Some(id(svid.id())),
        expires_at: unix_seconds(svid.not_after()),
        hint: String::new(),
    }
}

/// A bundle with the fields that the mask asks for. The trust domain is always there.
pub fn bundle(bundle: &Bundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    let all = ALL_OF_BUNDLE;
    let mask = mask.unwrap_or(&all);
    types::Bundle {
        trust_domain: bundle.trust_domain.name().to_owned(),
        x509_authorities: if mask.x509_authorities {
            bundle
                .x509_authorities
                .iter()
                .map(|a| types::X509Certificate { asn1: a.der.clone(), tainted: a.tainted })
                .collect()
        } else {
            Vec::new()
        },
        jwt_authorities: if mask.jwt_authorities { jwt_keys(&bundle.jwt_authorities) } else { Vec::new() },
        wit_authorities: if mask.wit_authorities {
            bundle
                .wit_authorities
                .iter()
                .map(|a| types::WitKey {
                    public_key: a.public_key.clone(),
                    key_id: a.key_id.clone(),
                    expires_at: a.expires_at,
                    tainted: a.tainted,
                })
                .collect()
        } else {
            Vec::new()
        },
        refresh_hint: if mask.refresh_hint { bundle.refresh_hint } else { 0 },
        sequence_number: if mask.sequence_number { bundle.sequence_number } else { 0 },
    }
}

pub const ALL_OF_BUNDLE: types::BundleMask = types::BundleMask {
    x509_authorities: true,
    jwt_authorities: true,
    refresh_hint: true,
    sequence_number: true,
    wit_authorities: true,
};

pub fn jwt_keys(keys: &[JwtAuthority]) -> Vec<types::JwtKey> {
    keys.iter()
        .map(|a| types::JwtKey {
            public_key: a.public_key.clone(),
            key_id: a.key_id.clone(),
            expires_at: a.expires_at,
            tainted: a.tainted,
        })
        .collect()
}

/// Why a bundle, or a part of one, in a request is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BundleFault {
    #[error("unable to parse X.509 authority: {0}")]
    X509(AuthorityFault),
    #[error("unable to parse JWT authority: {0}")]
    Jwt(AuthorityFault),
}

/// Why one authority in a request is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityFault {
    #[error("x509: malformed certificate: {0}")]
    Certificate(#[from] Malformed),
    #[error("missing key ID")]
    MissingKeyId,
    #[error("two different keys have the key ID \"{0}\"")]
    AmbiguousKeyId(String),
    #[error("public key is not a PKIX key: {0}")]
    PublicKey(der::Error),
}

/// A bundle as it is to be stored for `trust_domain`. Taints and WIT keys are the server's own business and not read.
pub fn read_bundle(bundle: &types::Bundle, trust_domain: TrustDomain) -> Result<Bundle, BundleFault> {
    Ok(Bundle {
        x509_authorities: read_x509_authorities(&bundle.x509_authorities).map_err(BundleFault::X509)?,
        jwt_authorities: read_jwt_authorities(&bundle.jwt_authorities).map_err(BundleFault::Jwt)?,
        wit_authorities: Vec::new(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence_number,
        trust_domain,
    })
}

/// Each element may hold several certificates one after the other; each comes out as an authority of its own, once.
pub fn read_x509_authorities(
    certificates: &[types::X509Certificate],
) -> Result<Vec<X509Authority>, AuthorityFault> {
    let mut seen = BTreeSet::new();
    let mut authorities = Vec::new();
    for certificate in certificates {
        for one in split_concatenated(&certificate.asn1)? {
            AuthorityCertificate::read(&one)?;
            if seen.insert(one.to_vec()) {
                authorities.push(X509Authority { der: one.to_vec(), tainted: false });
            }
        }
    }
    Ok(authorities)
}

/// A key that is there twice comes out once. A key ID must not name two keys: nobody could say which one verifies.
pub fn read_jwt_authorities(keys: &[types::JwtKey]) -> Result<Vec<JwtAuthority>, AuthorityFault> {
    let mut seen: BTreeMap<&str, &[u8]> = BTreeMap::new();
    let mut authorities = Vec::new();
    for key in keys {
        spki::SubjectPublicKeyInfoRef::from_der(&key.public_key).map_err(AuthorityFault::PublicKey)?;
        if key.key_id.is_empty() {
            return Err(AuthorityFault::MissingKeyId);
        }
        match seen.insert(&key.key_id, &key.public_key) {
            Some(other) if other != key.public_key => {
                return Err(AuthorityFault::AmbiguousKeyId(key.key_id.clone()));
            }
            Some(_) => {}
            None => authorities.push(JwtAuthority {
                key_id: key.key_id.clone(),
                public_key: key.public_key.clone(),
                expires_at: key.expires_at,
                tainted: false,
            }),
        }
    }
    Ok(authorities)
}
