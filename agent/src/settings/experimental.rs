//! The block `experimental`.

use std::time::Duration;

use finial_daemon::settings::{GoDuration, Notice, Section};

use super::unbuilt;
use crate::cache::DEFAULT_JWT_HIT_TIMEOUT;
use crate::sync::cadence::SYNC_INTERVAL;
use crate::workload_api::limit::RateLimits;

/// The least for `experimental.jwt_svid_cache_hit_timeout`.
const SHORTEST_JWT_HIT_TIMEOUT: Duration = Duration::from_secs(5);
/// SPIRE's feature flags. None of them changes what an agent does, in SPIRE neither.
const FEATURE_FLAGS: &[&str] = &["i_am_a_test_flag", "wit-svid"];

/// `agent.experimental`
#[derive(Debug, Clone)]
pub struct Experimental {
    pub sync_interval: Duration,
    pub use_sync_authorized_entries: bool,
    pub rate_limits: RateLimits,
    pub require_pq_kem: bool,
    pub jwt_svid_cache_hit_timeout: Duration,
}

impl Default for Experimental {
    fn default() -> Experimental {
        Experimental {
            sync_interval: SYNC_INTERVAL,
            use_sync_authorized_entries: true,
            rate_limits: RateLimits::default(),
            require_pq_kem: false,
            jwt_svid_cache_hit_timeout: DEFAULT_JWT_HIT_TIMEOUT,
        }
    }
}

pub(super) fn read(agent: &Section, warnings: &mut Vec<Notice>) -> Experimental {
    let Some(section) = agent.block("experimental") else { return Experimental::default() };
    unbuilt::experimental(&section);
    for (key, instead) in [("named_pipe_name", "socket_path"), ("admin_named_pipe_name", "admin_socket_path")]
    {
        if section.string(key).is_some_and(|name| !name.is_empty()) {
            section.problem(
                key,
                format_args!("{key} is not supported in this platform; please use {instead} instead"),
            );
        }
    }
    if !section.source().items.is_empty() {
        warnings.push(Notice::Warning(
            "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and compatibility \
             considerations for experimental features."
                .to_owned(),
        ));
    }
    let synced = section.bool("use_sync_authorized_entries");
    if synced.is_some() {
        warnings.push(Notice::Warning(
            "The 'use_sync_authorized_entries' configuration is deprecated. The option to disable it will be removed \
             in SPIRE 1.13."
                .to_owned(),
        ));
    }
    feature_flags(&section, warnings);
    let default = Experimental::default();
    let read = Experimental {
        sync_interval: section
            .duration("sync_interval")
            .filter(|interval| !interval.is_zero())
            .unwrap_or(default.sync_interval),
        use_sync_authorized_entries: synced.unwrap_or(default.use_sync_authorized_entries),
        rate_limits: section.block("ratelimit").map(|limits| rate_limits(&limits)).unwrap_or_default(),
        require_pq_kem: section.bool("require_pq_kem").unwrap_or(default.require_pq_kem),
        jwt_svid_cache_hit_timeout: jwt_hit_timeout(&section).unwrap_or(default.jwt_svid_cache_hit_timeout),
    };
    section.warn_of_unknown(warnings);
    read
}

fn jwt_hit_timeout(section: &Section) -> Option<Duration> {
    let timeout = section.duration("jwt_svid_cache_hit_timeout")?;
    let bound = match timeout {
        timeout if timeout < SHORTEST_JWT_HIT_TIMEOUT => "greater than 5s",
        timeout if timeout >= DEFAULT_JWT_HIT_TIMEOUT => "less than 30s",
        _ => return Some(timeout),
    };
    let text = GoDuration(timeout);
    section.problem(
        "jwt_svid_cache_hit_timeout",
        format_args!("jwt_svid_cache_hit_timeout ({text}) must be {bound}"),
    );
    None
}

fn feature_flags(section: &Section, warnings: &mut Vec<Notice>) {
    let mut unknown = Vec::new();
    for flag in section.list("feature_flags").unwrap_or_default() {
        if FEATURE_FLAGS.contains(&flag.as_str()) {
            warnings.push(Notice::Warning(format!("Developer feature flag {flag:?} has been enabled")));
        } else {
            unknown.push(flag);
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        section.problem("feature_flags", format_args!("unknown feature flag(s): [{}]", unknown.join(" ")));
    }
}

fn rate_limits(section: &Section) -> RateLimits {
    let limit = |key: &str| {
        let limit = section.int(key).unwrap_or(0);
        if limit < 0 {
            section.problem(key, format_args!("experimental.ratelimit.{key} must not be negative"));
        }
        u32::try_from(limit.max(0)).unwrap_or(u32::MAX)
    };
    RateLimits {
        fetch_x509_svid: limit("fetch_x509_svid"),
        fetch_jwt_svid: limit("fetch_jwt_svid"),
        fetch_x509_bundles: limit("fetch_x509_bundles"),
        fetch_jwt_bundles: limit("fetch_jwt_bundles"),
        stream_secrets: limit("stream_secrets"),
        fetch_secrets: limit("fetch_secrets"),
    }
}
