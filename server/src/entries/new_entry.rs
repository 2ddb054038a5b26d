//! Every rule about an entry, applied to what a caller sent.
//!
//! The texts are those that SPIRE's clients see. SPIRE applies its rules in two places, at the edge and in the
//! database layer, and the texts tell which: [`EntryFault::message`] puts the prefixes in front.

use finial_identity::entry::{
    AdditionalAttributes, DnsNameError, Entry, MAX_ENTRY_ID_BYTES, MAX_HINT_BYTES, dns_name,
};
use finial_identity::selector::{Selector, SelectorError, sorted};
use finial_identity::spiffe_id::{MembershipError, SpiffeId, SpiffeIdError};
use finial_identity::trust_domain::TrustDomain;
use uuid::Uuid;

use crate::store::entries::EntryUpdate;

/// An entry as a caller sent it, nothing checked. Revision number and time of creation are not the caller's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryDraft {
    /// Empty in a new entry: a UUID is chosen.
    pub id: String,
    /// `None`: the field was absent.
    pub spiffe_id: Option<IdDraft>,
    pub parent_id: Option<IdDraft>,
    /// Type and value.
    pub selectors: Vec<(String, String)>,
    /// Seconds; 0 means the server's default.
    pub x509_svid_ttl: i32,
    pub jwt_svid_ttl: i32,
    /// Trust domains, by bare name or `spiffe://` ID.
    pub federates_with: Vec<String>,
    pub admin: bool,
    pub downstream: bool,
    /// Unix seconds; 0 means never.
    pub expires_at: i64,
    pub dns_names: Vec<String>,
    pub store_svid: bool,
    pub hint: String,
    pub additional_attributes: Option<AdditionalAttributes>,
}

/// A SPIFFE ID in two parts, as on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdDraft {
    pub trust_domain: String,
    pub path: String,
}

/// Which fields of a draft an update takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMask {
    pub spiffe_id: bool,
    pub parent_id: bool,
    pub selectors: bool,
    pub x509_svid_ttl: bool,
    pub jwt_svid_ttl: bool,
    pub federates_with: bool,
    pub admin: bool,
    pub downstream: bool,
    pub expires_at: bool,
    pub dns_names: bool,
    pub store_svid: bool,
    pub hint: bool,
    pub additional_attributes: bool,
}

/// Why an entry is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    #[error("invalid parent ID: {0}")]
    ParentId(IdFault),
    #[error("invalid spiffe ID: {0}")]
    SpiffeId(IdFault),
    #[error("invalid DNS name: {0}")]
    DnsName(DnsNameError),
    #[error("invalid federated trust domain: {0}")]
    FederatedTrustDomain(SpiffeIdError),
    #[error("selector list is empty")]
    NoSelectors,
    #[error(transparent)]
    Selector(SelectorError),
    #[error("hint is too long, max length is {MAX_HINT_BYTES} characters")]
    HintTooLong,

    #[error("specifying cache behaviour is incompatible with storable SVIDs")]
    PrefetchOfStored,
    #[error("invalid registration entry: selector types must be the same when store SVID is enabled")]
    MixedSelectorsOfStored,
    #[error("invalid registration entry: entry ID too long")]
    IdTooLong,
    #[error("invalid registration entry: entry ID contains invalid characters")]
    IdCharacters,
    #[error("invalid registration entry: X509SvidTtl is not set")]
    X509SvidTtl,
    #[error("invalid registration entry: JwtSvidTtl is not set")]
    JwtSvidTtl,

    #[error(
        "UNIQUE constraint failed: selectors.registered_entry_id, selectors.type, selectors.value \
         (selector \"{0}\" is given twice)"
    )]
    RepeatedSelector(Selector),
    #[error(
        "UNIQUE constraint failed: dns_names.registered_entry_id, dns_names.value (DNS name \"{0}\" is given twice)"
    )]
    RepeatedDnsName(String),
}

/// Why an ID in an entry is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdFault {
    #[error("request must specify SPIFFE ID")]
    Absent,
    #[error(transparent)]
    Malformed(#[from] SpiffeIdError),
    #[error(transparent)]
    NotMember(#[from] MembershipError),
}

/// The place where SPIRE applies a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At the edge. `INVALID_ARGUMENT`.
    Conversion,
    /// In the database layer. `INVALID_ARGUMENT`.
    Validation,
    /// In the database. `ALREADY_EXISTS`.
    Constraint,
}

/// What the caller wants; part of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Create,
    Update,
}

/// Checks a new entry of the trust domain `td`. The time of creation is left for the store to set.
pub fn check(draft: EntryDraft, td: &TrustDomain) -> Result<Entry, EntryFault> {
    let parent_id = member(draft.parent_id, td).map_err(EntryFault::ParentId)?;
    let spiffe_id = workload(draft.spiffe_id, td).map_err(EntryFault::SpiffeId)?;
    check_dns_names(&draft.dns_names)?;
    let federates_with = trust_domains(&draft.federates_with)?;
    let selectors = selectors(draft.selectors)?;
    let hint = checked_hint(draft.hint)?;

    let entry = Entry {
        id: if draft.id.is_empty() { Uuid::new_v4().to_string() } else { draft.id },
        spiffe_id,
        parent_id,
        selectors: sorted(selectors.clone()),
        x509_svid_ttl: draft.x509_svid_ttl,
        jwt_svid_ttl: draft.jwt_svid_ttl,
        federates_with,
        admin: draft.admin,
        downstream: draft.downstream,
        expires_at: draft.expires_at,
        dns_names: draft.dns_names,
        revision_number: 0,
        store_svid: draft.store_svid,
        hint,
        created_at: 0,
        additional_attributes: draft.additional_attributes,
    };
    check_stored(&entry)?;
    check_id(&entry.id)?;
    check_x509_svid_ttl(entry.x509_svid_ttl)?;
    check_jwt_svid_ttl(entry.jwt_svid_ttl)?;
    check_repetitions(&selectors, &entry.dns_names)?;
    Ok(entry)
}

/// Checks an update: only the fields of `draft` that `mask` names are looked at and part of it. Whether the entry is left
/// with selectors of one type where `store_svid` asks for it is seen by the store, which knows the other fields. As in
/// SPIRE, nothing compares the outcome with other entries.
pub fn check_update(
    draft: EntryDraft,
    mask: &EntryMask,
    td: &TrustDomain,
) -> Result<EntryUpdate, EntryFault> {
    let mut update = EntryUpdate::default();
    if mask.parent_id {
        update.parent_id = Some(member(draft.parent_id, td).map_err(EntryFault::ParentId)?);
    }
    if mask.spiffe_id {
        update.spiffe_id = Some(workload(draft.spiffe_id, td).map_err(EntryFault::SpiffeId)?);
    }
    if mask.dns_names {
        check_dns_names(&draft.dns_names)?;
        update.dns_names = Some(draft.dns_names);
    }
    if mask.federates_with {
        update.federates_with = Some(trust_domains(&draft.federates_with)?);
    }
    let given_selectors = if mask.selectors { selectors(draft.selectors)? } else { Vec::new() };
    if mask.hint {
        update.hint = Some(checked_hint(draft.hint)?);
    }

    if mask.x509_svid_ttl {
        check_x509_svid_ttl(draft.x509_svid_ttl)?;
        update.x509_svid_ttl = Some(draft.x509_svid_ttl);
    }
    if mask.jwt_svid_ttl {
        check_jwt_svid_ttl(draft.jwt_svid_ttl)?;
        update.jwt_svid_ttl = Some(draft.jwt_svid_ttl);
    }
    check_repetitions(&given_selectors, update.dns_names.as_deref().unwrap_or_default())?;
    update.selectors = mask.selectors.then(|| sorted(given_selectors));
    update.admin = mask.admin.then_some(draft.admin);
    update.downstream = mask.downstream.then_some(draft.downstream);
    update.expires_at = mask.expires_at.then_some(draft.expires_at);
    update.store_svid = mask.store_svid.then_some(draft.store_svid);
    update.additional_attributes = mask.additional_attributes.then_some(draft.additional_attributes);
    Ok(update)
}

impl EntryMask {
    /// What an absent mask means.
    pub const ALL: EntryMask = EntryMask {
        spiffe_id: true,
        parent_id: true,
        selectors: true,
        x509_svid_ttl: true,
        jwt_svid_ttl: true,
        federates_with: true,
        admin: true,
        downstream: true,
        expires_at: true,
        dns_names: true,
        store_svid: true,
        hint: true,
        additional_attributes: true,
    };

    pub const NONE: EntryMask = EntryMask {
        spiffe_id: false,
        parent_id: false,
        selectors: false,
        x509_svid_ttl: false,
        jwt_svid_ttl: false,
        federates_with: false,
        admin: false,
        downstream: false,
        expires_at: false,
        dns_names: false,
        store_svid: false,
        hint: false,
        additional_attributes: false,
    };
}

impl EntryFault {
    pub fn stage(&self) -> Stage {
        match self {
            EntryFault::ParentId(_)
            | EntryFault::SpiffeId(_)
            | EntryFault::DnsName(_)
            | EntryFault::FederatedTrustDomain(_)
            | EntryFault::NoSelectors
            | EntryFault::Selector(_)
            | EntryFault::HintTooLong => Stage::Conversion,
            EntryFault::PrefetchOfStored
            | EntryFault::MixedSelectorsOfStored
            | EntryFault::IdTooLong
            | EntryFault::IdCharacters
            | EntryFault::X509SvidTtl
            | EntryFault::JwtSvidTtl => Stage::Validation,
            EntryFault::RepeatedSelector(_) | EntryFault::RepeatedDnsName(_) => Stage::Constraint,
        }
    }

    /// The whole text that a client sees.
    pub fn message(&self, action: Action) -> String {
        let action = match action {
            Action::Create => "create",
            Action::Update => "update",
        };
        match self.stage() {
            Stage::Conversion => format!("failed to convert entry: {self}"),
            Stage::Validation => format!("failed to {action} entry: datastore-validation: {self}"),
            Stage::Constraint => format!("failed to {action} entry: datastore-sql: {self}"),
        }
    }
}

impl IdDraft {
    /// The ID that the two parts make, in whatever trust domain. Like the reference, this takes a whole
    /// `spiffe://` ID in place of the trust domain's name, too.
    pub fn read(&self) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::from_parts(&TrustDomain::parse(&self.trust_domain)?, &self.path)
    }
}

impl From<&SpiffeId> for IdDraft {
    fn from(id: &SpiffeId) -> IdDraft {
        IdDraft { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
    }
}

/// An ID that must be in the trust domain and have a path: an agent, a workload or the server.
pub fn member(draft: Option<IdDraft>, td: &TrustDomain) -> Result<SpiffeId, IdFault> {
    let id = draft.ok_or(IdFault::Absent)?.read()?;
    id.member_of(td)?;
    Ok(id)
}

/// An ID that must be a workload's.
pub fn workload(draft: Option<IdDraft>, td: &TrustDomain) -> Result<SpiffeId, IdFault> {
    let id = draft.ok_or(IdFault::Absent)?.read()?;
    id.workload_in(td)?;
    Ok(id)
}

fn check_dns_names(names: &[String]) -> Result<(), EntryFault> {
    names.iter().try_for_each(|name| dns_name(name)).map_err(EntryFault::DnsName)
}

/// The order is kept, repetitions are dropped.
fn trust_domains(names: &[String]) -> Result<Vec<TrustDomain>, EntryFault> {
    let mut read: Vec<TrustDomain> = Vec::with_capacity(names.len());
    for name in names {
        let trust_domain = TrustDomain::parse(name).map_err(EntryFault::FederatedTrustDomain)?;
        if !read.contains(&trust_domain) {
            read.push(trust_domain);
        }
    }
    Ok(read)
}

fn selectors(given: Vec<(String, String)>) -> Result<Vec<Selector>, EntryFault> {
    if given.is_empty() {
        return Err(EntryFault::NoSelectors);
    }
    given.into_iter().map(|(kind, value)| Selector::new(kind, value).map_err(EntryFault::Selector)).collect()
}

fn checked_hint(hint: String) -> Result<String, EntryFault> {
    if hint.len() > MAX_HINT_BYTES { Err(EntryFault::HintTooLong) } else { Ok(hint) }
}

fn check_stored(entry: &Entry) -> Result<(), EntryFault> {
    if !entry.store_svid {
        return Ok(());
    }
    if entry.additional_attributes.as_ref().is_some_and(|attributes| attributes.disable_x509_svid_prefetch) {
        return Err(EntryFault::PrefetchOfStored);
    }
    if entry.selectors.windows(2).any(|pair| pair[0].kind != pair[1].kind) {
        return Err(EntryFault::MixedSelectorsOfStored);
    }
    Ok(())
}

fn check_id(id: &str) -> Result<(), EntryFault> {
    if id.len() > MAX_ENTRY_ID_BYTES {
        return Err(EntryFault::IdTooLong);
    }
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) {
        return Err(EntryFault::IdCharacters);
    }
    Ok(())
}

fn check_x509_svid_ttl(ttl: i32) -> Result<(), EntryFault> {
    if ttl < 0 { Err(EntryFault::X509SvidTtl) } else { Ok(()) }
}

fn check_jwt_svid_ttl(ttl: i32) -> Result<(), EntryFault> {
    if ttl < 0 { Err(EntryFault::JwtSvidTtl) } else { Ok(()) }
}

fn check_repetitions(selectors: &[Selector], dns_names: &[String]) -> Result<(), EntryFault> {
    if let Some(repeated) = first_repeated(selectors) {
        return Err(EntryFault::RepeatedSelector(repeated.clone()));
    }
    match first_repeated(dns_names) {
        Some(repeated) => Err(EntryFault::RepeatedDnsName(repeated.clone())),
        None => Ok(()),
    }
}

fn first_repeated<T: std::hash::Hash + Eq>(values: &[T]) -> Option<&T> {
    let mut seen = std::collections::HashSet::new();
    values.iter().find(|value| !seen.insert(*value))
}

#[cfg(test)]
mod tests;
