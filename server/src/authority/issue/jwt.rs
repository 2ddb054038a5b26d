//! The key that signs JWT-SVIDs.

use std::sync::Arc;
use std::time::SystemTime;

use finial_daemon::keys::Key;

/// A key that signs JWT-SVIDs, published in the bundle before it does.
#[derive(Clone, Debug)]
pub struct ActiveJwtKey {
    pub key: Arc<Key>,
    /// The header `kid` of what it signs.
    pub key_id: String,
    /// Nothing that it signs lasts longer.
    pub not_after: SystemTime,
}
