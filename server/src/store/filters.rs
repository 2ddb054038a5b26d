//! Conditions on entries, and on the sets that belong to entries and nodes.

use finial_identity::selector::{Selector, SelectorMatch, sorted};

use super::StoreError;
use super::dialect::{Dialect, Sql, Value};
use super::entries::ListEntries;

/// The parent of an entry that another column found: an expression, so that no index of parents is used. One parent may
/// have all entries, while few share a SPIFFE ID.
pub(super) const PARENT_OF_FOUND: &str = "COALESCE(e.parent_id, '')";

/// The condition of a list, on `registered_entries e`, and its values.
pub(super) fn entries(
    list: &ListEntries,
    dialect: Dialect,
) -> Result<(String, Vec<Value<'static>>), StoreError> {
    let mut conditions = vec!["0 = 0".to_owned()];
    let mut values = Vec::new();
    if let Some(id) = &list.spiffe_id {
        conditions.push("e.spiffe_id = ?".to_owned());
        values.push(Value::from(id.as_str().to_owned()));
    }
    if let Some(id) = &list.parent_id {
        let parent = if list.spiffe_id.is_some() { PARENT_OF_FOUND } else { "e.parent_id" };
        conditions.push(format!("{parent} = ?"));
        values.push(Value::from(id.as_str().to_owned()));
    }
    if let Some(hint) = list.hint.as_ref().filter(|hint| !hint.is_empty()) {
        conditions.push("e.hint = ?".to_owned());
        values.push(Value::from(hint.clone()));
    }
    if list.downstream {
        conditions.push("e.downstream = true".to_owned());
    }
    if let Some((mode, selectors)) = &list.selectors {
        let given = sorted(selectors.clone());
        if given.is_empty() {
            return Err(StoreError::InvalidArgument("cannot list by empty selector set".to_owned()));
        }
        let (condition, of_selectors) = selector_condition(*mode, &given, dialect);
        conditions.push(condition);
        values.extend(of_selectors);
    }
    if let Some((mode, trust_domains)) = &list.federates_with {
        let given = sorted(trust_domains.clone());
        if given.is_empty() {
            return Err(StoreError::InvalidArgument("cannot list by empty trust domain set".to_owned()));
        }
        let relation = Relation {
            owner: "e.id",
            key: "registered_entry_id",
            from: "federated_registration_entries JOIN bundles ON bundles.id = bundle_id",
            member: "trust_domain",
            set: Sql::set(given.len()),
        };
        conditions.push(match_condition(*mode, &relation, given.len()));
        for _ in 0..times_bound(*mode) {
            values.extend(given.iter().map(|trust_domain| Value::from(trust_domain.id().to_string())));
        }
    }
    Ok((conditions.join(" AND "), values))
}

/// The condition that an entry's selectors relate to these as asked, and its values.
pub(super) fn selector_condition(
    mode: SelectorMatch,
    given: &[Selector],
    dialect: Dialect,
) -> (String, Vec<Value<'static>>) {
    let relation = Relation {
        owner: "e.id",
        key: "registered_entry_id",
        from: "selectors",
        member: "(type, value)",
        set: dialect.pairs(given.len()),
    };
    (match_condition(mode, &relation, given.len()), selector_values(mode, given))
}

/// The values of a set of selectors, as often as [`match_condition`] names it.
pub(super) fn selector_values(mode: SelectorMatch, given: &[Selector]) -> Vec<Value<'static>> {
    let once = given
        .iter()
        .flat_map(|selector| [Value::from(selector.kind.clone()), Value::from(selector.value.clone())]);
    let once: Vec<_> = once.collect();
    once.iter().cycle().take(once.len() * times_bound(mode)).cloned().collect()
}

/// The condition that the set of a row relates to the given set as asked.
///
/// Each row's set is looked up by itself, through the unique index on owner and member. A list of the rows that have a
/// given member would be made anew for each page, and a common selector makes it as long as the table.
pub(super) fn match_condition(mode: SelectorMatch, relation: &Relation<'_>, given: usize) -> String {
    let Relation { owner, key, from, member, set } = relation;
    let shared = format!("EXISTS (SELECT 1 FROM {from} WHERE {key} = {owner} AND {member} IN {set})");
    let all = format!("(SELECT COUNT(*) FROM {from} WHERE {key} = {owner} AND {member} IN {set}) = {given}");
    let no_other =
        format!("NOT EXISTS (SELECT 1 FROM {from} WHERE {key} = {owner} AND {member} NOT IN {set})");
    match mode {
        SelectorMatch::Any => shared,
        SelectorMatch::Superset => all,
        SelectorMatch::Subset => format!("{shared} AND {no_other}"),
        SelectorMatch::Exact => format!("{all} AND {no_other}"),
    }
}

/// How often [`match_condition`] names the set, so how often its values are bound.
pub(super) fn times_bound(mode: SelectorMatch) -> usize {
    match mode {
        SelectorMatch::Any | SelectorMatch::Superset => 1,
        SelectorMatch::Subset | SelectorMatch::Exact => 2,
    }
}

/// A set that belongs to a row: its table, how it names its owner, and what its members are.
pub(super) struct Relation<'a> {
    pub(super) owner: &'a str,
    pub(super) key: &'a str,
    pub(super) from: &'a str,
    pub(super) member: &'a str,
    pub(super) set: String,
}
