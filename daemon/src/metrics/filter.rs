//! Which numbers and labels go to the sinks, and what their names are made of.

use super::MetricsSettings;

/// `AllowedPrefixes`, `BlockedPrefixes`, `AllowedLabels`, `BlockedLabels`. The longest prefix that matches decides; what none
/// matches goes through.
pub(super) struct Filter {
    prefixes: Vec<(String, bool)>,
    allowed_labels: Option<Vec<String>>,
    blocked_labels: Vec<String>,
}

impl Filter {
    pub(super) fn new(settings: &MetricsSettings) -> Filter {
        let allowed = settings.allowed_prefixes.iter().map(|prefix| (prefix.clone(), true));
        let blocked = settings.blocked_prefixes.iter().map(|prefix| (prefix.clone(), false));
        Filter {
            prefixes: allowed.chain(blocked).collect(),
            allowed_labels: settings.allowed_labels.clone(),
            blocked_labels: settings.blocked_labels.clone(),
        }
    }

    /// Prefixes are of the whole name, its words joined by dots.
    pub(super) fn admits(&self, key: &[&str]) -> bool {
        if self.prefixes.is_empty() {
            return true;
        }
        let name = key.join(".");
        let matching = self.prefixes.iter().filter(|(prefix, _)| name.starts_with(prefix.as_str()));
        // Of two that are the same the later one counts: blocked.
        matching.max_by_key(|(prefix, _)| prefix.len()).is_none_or(|(_, allowed)| *allowed)
    }

    pub(super) fn admits_label(&self, name: &str) -> bool {
        !self.blocked_labels.iter().any(|blocked| blocked == name)
            && self.allowed_labels.as_ref().is_none_or(|allowed| allowed.iter().any(|one| one == name))
    }
}

/// Each run of characters other than ASCII letters, digits and `_`, with one `_` that may follow it, becomes one `_`.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if is_word(next) {
            cleaned.push(next);
            continue;
        }
        while rest.next_if(|next| !is_word(*next)).is_some() {}
        rest.next_if_eq(&'_');
        cleaned.push('_');
    }
    cleaned
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}
