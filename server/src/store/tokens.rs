//! Join tokens: table `join_tokens`.

use finial_identity::entry::Entry;

use super::dialect::values;
use super::entries::{self, Created};
use super::{Store, StoreError};

/// Operations on join tokens. From [`Store::tokens`].
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'s> {
    pub(super) store: &'s Store,
}

/// What [`Tokens::take`] found. In each case the token does not exist any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The token is the taker's, and nobody else's.
    Valid,
    Expired,
    /// Never made, pruned, or taken before.
    Missing,
}

impl Tokens<'_> {
    /// Stores a token that is valid until `expires_at` (unix seconds), and with it the entry that gives its agent
    /// another identity, if there is one: both or neither.
    ///
    /// # Errors
    ///
    /// [`StoreError::InvalidArgument`] without a token or expiry; [`StoreError::AlreadyExists`] if the token is there.
    pub async fn create(
        &self,
        token: impl Into<String>,
        expires_at: i64,
        alias: Option<Entry>,
    ) -> Result<Option<Created>, StoreError> {
        let token = token.into();
        if token.is_empty() || expires_at == 0 {
            return Err(StoreError::InvalidArgument("token and expiry are required".to_owned()));
        }
        self.store
            .counted(&["join_token.create"])
            .write(move |sql| {
                sql.insert(
                    "INSERT INTO join_tokens (created_at, updated_at, token, expiry) VALUES (?, ?, ?, ?)",
                    values![sql.now(), sql.now(), &token, expires_at],
                )?;
                alias.map(|entry| entries::create(sql, entry)).transpose()
            })
            .await
    }

    /// Takes a token out, at `now` (unix seconds). Of several takers at once, one gets it.
    pub async fn take(&self, token: impl Into<String>, now: i64) -> Result<Taken, StoreError> {
        let token = token.into();
        self.store
            .counted(&["join_token.fetch", "join_token.delete"])
            .write(move |sql| {
                let expires_at =
                    sql.row("SELECT expiry FROM join_tokens WHERE token = ?", values![&token], |row| {
                        row.int(0)
                    })?;
                let deleted = sql.run("DELETE FROM join_tokens WHERE token = ?", values![&token])?;
                Ok(match expires_at {
                    Some(_) if deleted != 1 => Taken::Missing,
                    Some(expires_at) if expires_at < now => Taken::Expired,
                    Some(_) => Taken::Valid,
                    None => Taken::Missing,
                })
            })
            .await
    }

    /// When a token expires (unix seconds), if it is there.
    pub async fn expiry(&self, token: impl Into<String>) -> Result<Option<i64>, StoreError> {
        let token = token.into();
        self.store
            .counted(&["join_token.fetch"])
            .read(move |sql| {
                sql.row("SELECT expiry FROM join_tokens WHERE token = ?", values![&token], |row| row.int(0))
            })
            .await
    }

    /// Deletes tokens that expired before `now` (unix seconds); how many.
    pub async fn prune(&self, now: i64) -> Result<usize, StoreError> {
        self.store
            .counted(&["join_token.prune"])
            .write(move |sql| sql.run("DELETE FROM join_tokens WHERE expiry < ?", values![now]))
            .await
    }
}
