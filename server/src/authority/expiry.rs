//! When what we trust and what we are ends, for whoever watches over it.

use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::clock::unix_seconds;
use finial_daemon::metrics::Metrics;
use finial_identity::bundle::Bundle;
use finial_identity::x509_svid::AuthorityCertificate;
use tokio::sync::watch;

use super::server_svid::ServerSvid;
use crate::bundles::federated::Federated;

/// Shows the ends of all authorities in our bundle and in those of others, and of the server's own SVID, unix seconds, at
/// each change. Never ends by itself.
pub async fn show(
    metrics: Metrics,
    mut own: watch::Receiver<Arc<Bundle>>,
    mut federated: watch::Receiver<Arc<Federated>>,
    mut server_svid: watch::Receiver<Arc<ServerSvid>>,
) {
    loop {
        let bundles: Vec<Arc<Bundle>> = {
            let own = Arc::clone(&own.borrow_and_update());
            std::iter::once(own).chain(federated.borrow_and_update().values().cloned()).collect()
        };
        show_authorities(&metrics, &bundles);
        let not_after = server_svid.borrow_and_update().svid.not_after();
        metrics.gauge(&["finial", "server_svid", "expiration"], seconds(not_after));
        let changed = tokio::select! {
            changed = own.changed() => changed,
            changed = federated.changed() => changed,
            changed = server_svid.changed() => changed,
        };
        if changed.is_err() {
            // The server is ending.
            return std::future::pending().await;
        }
    }
}

fn show_authorities(metrics: &Metrics, bundles: &[Arc<Bundle>]) {
    let mut x509 = Vec::new();
    let mut jwt = Vec::new();
    for bundle in bundles {
        let trust_domain = bundle.trust_domain.name();
        for authority in &bundle.x509_authorities {
            let Ok(certificate) = AuthorityCertificate::read(&authority.der) else { continue };
            let ends = seconds(certificate.not_after());
            x509.push((trust_domain, certificate.authority_id(), authority.tainted, ends));
        }
        for authority in &bundle.jwt_authorities {
            let ends = authority.expires_at as f64;
            jwt.push((trust_domain, authority.key_id.clone(), authority.tainted, ends));
        }
    }
    for (kind, authorities) in [("x509_authority", x509), ("jwt_authority", jwt)] {
        let values: Vec<_> = authorities
            .iter()
            .map(|(trust_domain, id, tainted, ends)| {
                let tainted = if *tainted { "true" } else { "false" };
                let labels = vec![
                    ("trust_domain_id", *trust_domain),
                    ("authority_id", id.as_str()),
                    ("tainted", tainted),
                ];
                (labels, *ends)
            })
            .collect();
        metrics.gauges(&["finial", kind, "expiration"], &values);
    }
}

fn seconds(time: SystemTime) -> f64 {
    unix_seconds(time) as f64
}
