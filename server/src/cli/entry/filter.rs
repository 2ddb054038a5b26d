//! The flags that say which entries are meant.

use finial_daemon::argv::text;
use finial_proto::spire::api::server::entry::v1::{count_entries_request, list_entries_request};
use finial_proto::spire::api::types::federates_with_match::MatchBehavior as FederatesBehavior;
use finial_proto::spire::api::types::selector_match::MatchBehavior;
use finial_proto::spire::api::types::{FederatesWithMatch, SelectorMatch, Spiffeid};

use crate::cli::matching::{behavior, given, id, selector, unknown_behavior};
use crate::cli::output::{Failure, fail};

#[derive(Debug, Default, clap::Args)]
pub struct Filter {
    /// Only entries with this parent
    #[arg(long = "parentID")]
    parent_id: Option<String>,
    /// Only entries that give this SPIFFE ID
    #[arg(long = "spiffeID")]
    spiffe_id: Option<String>,
    /// Only entries of nested servers
    #[arg(long = "downstream")]
    downstream: bool,
    /// Only entries with this selector, type:value. May be given more than once
    #[arg(long = "selector", value_name = "value")]
    selectors: Vec<String>,
    /// Only entries that federate with this trust domain. May be given more than once
    #[arg(long = "federatesWith", value_name = "value")]
    federates_with: Vec<String>,
    /// How the trust domains must match an entry's: exact, any, superset (it has at least these) or subset (no others)
    #[arg(long = "matchFederatesWithOn", default_value = "superset")]
    match_federates_with_on: String,
    /// How the selectors must match an entry's: exact, any, superset (it has at least these) or subset (no others)
    #[arg(long = "matchSelectorsOn", default_value = "superset")]
    match_selectors_on: String,
    /// Only entries with this hint
    #[arg(long = "hint")]
    hint: Option<String>,
}

impl Filter {
    /// Whether a flag is given that makes no sense beside an entry ID.
    pub fn names_an_entry(&self) -> bool {
        given(&self.parent_id).is_some() || given(&self.spiffe_id).is_some() || !self.selectors.is_empty()
    }

    pub fn listing(&self) -> Result<list_entries_request::Filter, Failure> {
        Ok(list_entries_request::Filter {
            by_parent_id: by_id("parent ID", &self.parent_id)?,
            by_spiffe_id: by_id("SPIFFE ID", &self.spiffe_id)?,
            by_selectors: self.by_selectors()?,
            by_federates_with: self.by_federates_with()?,
            by_hint: given(&self.hint).map(str::to_owned),
            by_downstream: Some(self.downstream),
        })
    }

    pub fn counting(&self) -> Result<count_entries_request::Filter, Failure> {
        let filter = self.listing()?;
        Ok(count_entries_request::Filter {
            by_parent_id: filter.by_parent_id,
            by_spiffe_id: filter.by_spiffe_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        })
    }

    fn by_selectors(&self) -> Result<Option<SelectorMatch>, Failure> {
        if self.selectors.is_empty() {
            return Ok(None);
        }
        let how = &self.match_selectors_on;
        let behavior = behavior(how).ok_or_else(|| unknown_behavior(how))?;
        let selectors = self.selectors.iter().map(|given| {
            selector(given).map_err(|failure| match failure {
                Failure::Told(cause) => fail(format!("error parsing selectors: {cause}")),
                other => other,
            })
        });
        Ok(Some(SelectorMatch { selectors: selectors.collect::<Result<_, _>>()?, r#match: behavior.into() }))
    }

    fn by_federates_with(&self) -> Result<Option<FederatesWithMatch>, Failure> {
        if self.federates_with.is_empty() {
            return Ok(None);
        }
        let how = &self.match_federates_with_on;
        let behavior = match behavior(how).ok_or_else(|| unknown_behavior(how))? {
            MatchBehavior::MatchExact => FederatesBehavior::MatchExact,
            MatchBehavior::MatchSubset => FederatesBehavior::MatchSubset,
            MatchBehavior::MatchSuperset => FederatesBehavior::MatchSuperset,
            MatchBehavior::MatchAny => FederatesBehavior::MatchAny,
        };
        let trust_domains = self.federates_with.clone();
        Ok(Some(FederatesWithMatch { trust_domains, r#match: behavior.into() }))
    }
}

fn by_id(what: &str, flag: &Option<String>) -> Result<Option<Spiffeid>, Failure> {
    let Some(text) = given(flag) else { return Ok(None) };
    let parsed = id(text);
    parsed.map(Some).map_err(|error| fail(format!("error parsing {what} {}: {error}", text::quote(text))))
}
