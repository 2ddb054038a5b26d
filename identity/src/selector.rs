//! Selectors: facts about a node or a process, and how sets of them compare.

use std::cmp::Ordering;
use std::fmt;

/// One fact, `type:value`, as in `unix:uid:1000` (type `unix`, value `uid:1000`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// The type: the name of the attestor that found the fact. Never empty, never holds a `:`.
    pub kind: String,
    /// The value: never empty; may hold `:`.
    pub value: String,
}

/// Why a text or a pair is not a selector. The texts of the first three are SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("missing selector type")]
    MissingType,
    #[error("selector type contains ':'")]
    ColonInType,
    #[error("missing selector value")]
    MissingValue,
    #[error("selector {0:?} must be formatted as type:value")]
    NotTypeValue(String),
}

/// How the set of an entry must relate to the set that is asked for. The numbers are those of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectorMatch {
    /// Both sets are equal.
    Exact = 0,
    /// Each member of the entry's set is in the given set.
    Subset = 1,
    /// Each given member is in the entry's set.
    Superset = 2,
    /// The sets share a member.
    Any = 3,
}

impl Selector {
    /// Makes a checked selector.
    pub fn new(kind: impl Into<String>, value: impl Into<String>) -> Result<Selector, SelectorError> {
        let (kind, value) = (kind.into(), value.into());
        if kind.is_empty() {
            return Err(SelectorError::MissingType);
        }
        if kind.contains(':') {
            return Err(SelectorError::ColonInType);
        }
        if value.is_empty() {
            return Err(SelectorError::MissingValue);
        }
        Ok(Selector { kind, value })
    }

    /// Reads `type:value`; the first `:` divides.
    pub fn parse(text: &str) -> Result<Selector, SelectorError> {
        let (kind, value) =
            text.split_once(':').ok_or_else(|| SelectorError::NotTypeValue(text.to_owned()))?;
        Selector::new(kind, value)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl SelectorMatch {
    /// The match for its number in the API, if there is one.
    pub fn from_number(number: i32) -> Option<SelectorMatch> {
        match number {
            0 => Some(SelectorMatch::Exact),
            1 => Some(SelectorMatch::Subset),
            2 => Some(SelectorMatch::Superset),
            3 => Some(SelectorMatch::Any),
            _ => None,
        }
    }
}

/// Sorts and removes repetitions: the form in which the functions below take their sets.
pub fn sorted<T: Ord>(mut members: Vec<T>) -> Vec<T> {
    members.sort_unstable();
    members.dedup();
    members
}

/// Whether each member of `a` is in `b`. Both must be sorted and without repetitions ([`sorted`]).
pub fn is_subset<T: Ord>(a: &[T], b: &[T]) -> bool {
    if a.len() > b.len() {
        return false;
    }
    let mut rest = b.iter();
    a.iter().all(|wanted| rest.by_ref().find(|found| *found >= wanted).is_some_and(|found| found == wanted))
}

/// Whether `a` and `b` share a member. Both must be sorted and without repetitions ([`sorted`]).
pub fn intersects<T: Ord>(a: &[T], b: &[T]) -> bool {
    let (mut left, mut right) = (a, b);
    while let ([first_left, rest_left @ ..], [first_right, rest_right @ ..]) = (left, right) {
        match first_left.cmp(first_right) {
            Ordering::Less => left = rest_left,
            Ordering::Greater => right = rest_right,
            Ordering::Equal => return true,
        }
    }
    false
}

/// Whether an entry's set relates to the given set as asked. Both must be sorted and without repetitions
/// ([`sorted`]). Serves for sets of trust domains too.
pub fn matches<T: Ord>(mode: SelectorMatch, entry_set: &[T], given: &[T]) -> bool {
    match mode {
        SelectorMatch::Exact => entry_set == given,
        SelectorMatch::Subset => is_subset(entry_set, given),
        SelectorMatch::Superset => is_subset(given, entry_set),
        SelectorMatch::Any => intersects(entry_set, given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(members: &[&str]) -> Vec<Selector> {
        sorted(members.iter().map(|text| Selector::parse(text).unwrap()).collect())
    }

    #[test]
    fn texts_are_divided_at_the_first_colon() {
        let selector = Selector::parse("k8s:ns:default").unwrap();
        assert_eq!((selector.kind.as_str(), selector.value.as_str()), ("k8s", "ns:default"));
        assert_eq!(selector.to_string(), "k8s:ns:default");
    }

    #[test]
    fn faults_are_told_in_the_words_that_clients_know() {
        let text = |result: Result<Selector, SelectorError>| result.unwrap_err().to_string();
        assert_eq!(text(Selector::new("", "v")), "missing selector type");
        assert_eq!(text(Selector::new("a:b", "v")), "selector type contains ':'");
        assert_eq!(text(Selector::new("a", "")), "missing selector value");
        assert_eq!(text(Selector::parse("unix")), "selector \"unix\" must be formatted as type:value");
        assert_eq!(text(Selector::parse(":v")), "missing selector type");
        assert_eq!(text(Selector::parse("a:")), "missing selector value");
    }

    #[test]
    fn each_way_to_match() {
        let (one, two, other) = (set(&["a:1"]), set(&["b:2", "a:1", "a:1"]), set(&["a:1", "c:3"]));
        assert_eq!(two.len(), 2);
        let modes = |entry: &[Selector], given: &[Selector]| {
            [0, 1, 2, 3].map(|number| matches(SelectorMatch::from_number(number).unwrap(), entry, given))
        };
        assert_eq!(modes(&two, &two), [true, true, true, true]);
        assert_eq!(modes(&one, &two), [false, true, false, true]);
        assert_eq!(modes(&two, &one), [false, false, true, true]);
        assert_eq!(modes(&two, &other), [false, false, false, true]);
        assert_eq!(modes(&one, &set(&["c:3"])), [false, false, false, false]);
        assert_eq!([-1, 4].map(SelectorMatch::from_number), [None, None]);
    }
}
