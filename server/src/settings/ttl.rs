//! Warnings about lifetimes that a scheduled rotation of the CA would cut short.
//!
//! The CA that signs has at least a sixth of its life left, and never has to have more than seven days left. An SVID
//! cannot outlive its CA; so a longer lifetime is promised in vain, and the operator is told which values would hold.

use std::time::Duration;

use finial_daemon::settings::GoDuration;
use finial_identity::lifetime::{self, ACTIVATE_CAP, ACTIVATE_DIVISOR};

/// The warning for one key, or `None` when every SVID gets its full lifetime.
pub(super) fn warning(key: &str, ttl: Duration, ca_ttl: Duration) -> Option<String> {
    let guaranteed = lifetime::longest_svid_ttl(ca_ttl);
    if ttl <= guaranteed {
        return None;
    }
    let text = if ttl < ACTIVATE_CAP {
        format!(
            "{key} is too high for the configured ca_ttl value. SVIDs with shorter lifetimes may be issued. Please set \
             {key} to {} or less, or the ca_ttl to {} or more, to guarantee the full {key} lifetime when CA rotations \
             are scheduled.",
            show(guaranteed),
            show(ttl * ACTIVATE_DIVISOR),
        )
    } else if ca_ttl < ACTIVATE_CAP * ACTIVATE_DIVISOR {
        format!(
            "{key} is too high and the ca_ttl is too low. SVIDs with shorter lifetimes may be issued. Please set {key} \
             to {} or less, and the ca_ttl to {} or more, to guarantee the full {key} lifetime when CA rotations are \
             scheduled.",
            show(ACTIVATE_CAP),
            show(ACTIVATE_CAP * ACTIVATE_DIVISOR),
        )
    } else {
        format!(
            "{key} is too high. SVIDs with shorter lifetimes may be issued. Please set {key} to {} or less to guarantee \
             the full {key} lifetime when CA rotations are scheduled.",
            show(guaranteed),
        )
    };
    Some(text)
}

/// `6h`, `168h`, `1h30m`: without the zeros at the end.
fn show(duration: Duration) -> String {
    let mut text = GoDuration(Duration::from_secs(duration.as_secs())).to_string();
    for zero in ["m0s", "h0m"] {
        if text.ends_with(zero) {
            text.truncate(text.len() - 2);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn nothing_to_say_when_a_sixth_of_the_ca_is_enough() {
        assert_eq!(warning("agent_ttl", HOUR, HOUR * 24), None);
        assert_eq!(warning("agent_ttl", HOUR * 4, HOUR * 24), None);
    }

    #[test]
    fn says_which_ca_ttl_would_work() {
        let text = warning("default_x509_svid_ttl", HOUR * 5, HOUR * 24).unwrap();
        assert!(text.contains("to 4h or less, or the ca_ttl to 30h or more"), "{text}");
    }

    #[test]
    fn beyond_seven_days_no_ca_helps() {
        let text = warning("agent_ttl", HOUR * 24 * 8, HOUR * 24).unwrap();
        assert!(text.contains("to 168h or less, and the ca_ttl to 1008h or more"), "{text}");
        let text = warning("agent_ttl", HOUR * 24 * 8, HOUR * 24 * 365).unwrap();
        assert!(text.contains("Please set agent_ttl to 168h or less to guarantee"), "{text}");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(show(Duration::from_secs(90 * 60)), "1h30m");
        assert_eq!(show(Duration::from_secs(61)), "1m1s");
        assert_eq!(show(Duration::from_millis(4_200)), "4s");
    }
}
