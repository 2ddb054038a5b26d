//! Wire messages of the server, read into values.

use finial_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use finial_identity::entry::{AdditionalAttributes, Entry};
use finial_identity::selector::{Selector, sorted};
use finial_identity::{SpiffeId, TrustDomain};
use finial_proto::spire::api::types;

/// A message that can't be what it says.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("its {part} is wrong: {text}")]
    Wrong { part: &'static str, text: String },
}

/// The fields of entries that an agent needs.
pub(super) fn entry_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        parent_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        expires_at: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
        ..types::EntryMask::default()
    }
}

/// The entries that can be read; one that can't is logged and left out, as SPIRE's agent does.
pub(super) fn entries(entries: Vec<types::Entry>) -> Vec<Entry> {
    let read = |wire: types::Entry| {
        let id = wire.id.clone();
        entry(wire)
            .map_err(
                |error| tracing::warn!(entry_id = id, %error, "Received malformed entry from the server"),
            )
            .ok()
    };
    entries.into_iter().filter_map(read).collect()
}

fn entry(wire: types::Entry) -> Result<Entry, Unreadable> {
    if wire.id.is_empty() {
        return Err(Unreadable::Missing("id"));
    }
    if wire.selectors.is_empty() {
        return Err(Unreadable::Missing("selectors"));
    }
    let selectors = wire
        .selectors
        .into_iter()
        .map(|selector| Selector::new(selector.r#type, selector.value))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Unreadable::Wrong { part: "selectors", text: error.to_string() })?;
    let federates_with = wire
        .federates_with
        .iter()
        .map(|name| TrustDomain::parse(name))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Unreadable::Wrong { part: "federates_with", text: error.to_string() })?;
    let spiffe_id = spiffe_id(wire.spiffe_id, "spiffe_id")?;
    Ok(Entry {
        id: wire.id,
        // Servers before masks knew it leave it out; nothing here hangs on it.
        parent_id: self::spiffe_id(wire.parent_id, "parent_id")
            .unwrap_or_else(|_| spiffe_id.trust_domain().server_id()),
        spiffe_id,
        selectors: sorted(selectors),
        x509_svid_ttl: wire.x509_svid_ttl,
        jwt_svid_ttl: wire.jwt_svid_ttl,
        federates_with,
        admin: wire.admin,
        downstream: wire.downstream,
        expires_at: wire.expires_at,
        dns_names: wire.dns_names,
        revision_number: wire.revision_number,
        store_svid: wire.store_svid,
        hint: wire.hint,
        created_at: wire.created_at,
        additional_attributes: wire.additional_attributes.map(|more| AdditionalAttributes {
            disable_x509_svid_prefetch: more.disable_x509_svid_prefetch,
            jwt_svid_include_jti: more.jwt_svid_include_jti,
            unknown: Vec::new(),
        }),
    })
}

/// A bundle; several certificates may stand in one authority.
pub(super) fn bundle(wire: types::Bundle) -> Result<Bundle, Unreadable> {
    let wrong = |part, error: &dyn std::error::Error| Unreadable::Wrong { part, text: error.to_string() };
    let trust_domain =
        TrustDomain::parse(&wire.trust_domain).map_err(|error| wrong("trust_domain", &error))?;
    let mut x509_authorities = Vec::with_capacity(wire.x509_authorities.len());
    for authority in wire.x509_authorities {
        let certificates = finial_identity::x509_svid::split_concatenated(&authority.asn1)
            .map_err(|error| wrong("x509_authorities", &error))?;
        let tainted = authority.tainted;
        x509_authorities
            .extend(certificates.into_iter().map(|der| X509Authority { der: der.to_vec(), tainted }));
    }
    let key =
        |public_key, key_id, expires_at, tainted| JwtAuthority { key_id, public_key, expires_at, tainted };
    Ok(Bundle {
        trust_domain,
        x509_authorities,
        jwt_authorities: wire
            .jwt_authorities
            .into_iter()
            .map(|wire| key(wire.public_key, wire.key_id, wire.expires_at, wire.tainted))
            .collect(),
        wit_authorities: wire
            .wit_authorities
            .into_iter()
            .map(|wire| key(wire.public_key, wire.key_id, wire.expires_at, wire.tainted))
            .collect(),
        refresh_hint: wire.refresh_hint,
        sequence_number: wire.sequence_number,
    })
}

pub(super) fn spiffe_id(wire: Option<types::Spiffeid>, part: &'static str) -> Result<SpiffeId, Unreadable> {
    let wire = wire.ok_or(Unreadable::Missing(part))?;
    let wrong = |error: finial_identity::SpiffeIdError| Unreadable::Wrong { part, text: error.to_string() };
    let trust_domain = TrustDomain::parse(&wire.trust_domain).map_err(wrong)?;
    SpiffeId::from_parts(&trust_domain, &wire.path).map_err(wrong)
}
