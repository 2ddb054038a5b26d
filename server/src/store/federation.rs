//! Relationships with other trust domains that are managed at run time: table `federated_trust_domains`.

use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;

use super::dialect::{Row, Sql, Value, values};
use super::{Bounds, Page, PageRequest, Store, StoreError, bundles};

/// Operations on relationships. From [`Store::federation`].
#[derive(Clone, Copy, Debug)]
pub struct Federation<'s> {
    pub(super) store: &'s Store,
}

/// How the bundle of another trust domain is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    pub trust_domain: TrustDomain,
    /// An https URL.
    pub endpoint_url: String,
    pub profile: EndpointProfile,
    /// The bundle that is stored for the trust domain; with a new relationship, the one to store.
    pub bundle: Option<Bundle>,
}

/// How a bundle endpoint proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// With a certificate that the host's own roots verify.
    HttpsWeb,
    /// With an X.509-SVID of this ID.
    HttpsSpiffe(SpiffeId),
}

/// New values of a relationship's fields; `None` leaves the field as it is.
#[derive(Clone, Debug, Default)]
pub struct RelationshipUpdate {
    pub endpoint_url: Option<String>,
    pub profile: Option<EndpointProfile>,
    /// Takes the place of the stored bundle.
    pub bundle: Option<Bundle>,
}

impl Federation<'_> {
    /// The relationship with a trust domain.
    pub async fn get(&self, trust_domain: &TrustDomain) -> Result<Option<Relationship>, StoreError> {
        let trust_domain = trust_domain.clone();
        self.store.counted(&["federation_relationship.fetch"]).read(move |sql| find(sql, &trust_domain)).await
    }

    /// All relationships in order of creation.
    pub async fn list(&self, page: Option<&PageRequest>) -> Result<Page<Relationship>, StoreError> {
        let bounds = Bounds::of(page)?;
        self.store
            .counted(&["federation_relationship.list"])
            .read(move |sql| {
                let mut query = format!("SELECT id, {COLUMNS} FROM federated_trust_domains");
                let mut values = Vec::new();
                if let Some(bounds) = &bounds {
                    query.push_str(" WHERE id > ? ORDER BY id LIMIT ?");
                    values.extend([Value::Int(bounds.after), Value::Int(bounds.size.into())]);
                } else {
                    query.push_str(" ORDER BY id");
                }
                let mut rows =
                    sql.rows(&query, &values, |row| Ok((row.int(0)?, relationship_at(row, 1)?)))?;
                for (_, relationship) in &mut rows {
                    relationship.bundle = bundles::bundle_of(sql, &relationship.trust_domain)?;
                }
                Ok(Page::new(rows, bounds.as_ref()))
            })
            .await
    }

    /// Stores a new relationship, and its bundle, if it has one, in the place of the trust domain's present one.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`] if there is a relationship with the trust domain.
    pub async fn create(&self, relationship: Relationship) -> Result<Relationship, StoreError> {
        self.store
            .counted(&["federation_relationship.create"])
            .write(move |sql| {
                if let Some(bundle) = &relationship.bundle {
                    bundles::put(sql, bundle)?;
                }
                let (profile, endpoint_id) = relationship.profile.columns();
                sql.insert(
                    "INSERT INTO federated_trust_domains (created_at, updated_at, trust_domain, \
                     bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id, implicit) \
                     VALUES (?, ?, ?, ?, ?, ?, ?)",
                    values![
                        sql.now(),
                        sql.now(),
                        relationship.trust_domain.name(),
                        &relationship.endpoint_url,
                        profile,
                        endpoint_id.unwrap_or_default(),
                        false
                    ],
                )?;
                Ok(relationship)
            })
            .await
    }

    /// Changes fields of a relationship; the whole relationship as it is now.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn update(
        &self,
        trust_domain: &TrustDomain,
        update: RelationshipUpdate,
    ) -> Result<Relationship, StoreError> {
        let trust_domain = trust_domain.clone();
        self.store
            .counted(&["federation_relationship.update"])
            .write(move |sql| {
                let mut relationship = find(sql, &trust_domain)?.ok_or_else(|| {
                    StoreError::NotFound(
                        "unable to fetch federation relationship: record not found".to_owned(),
                    )
                })?;
                relationship.endpoint_url = update.endpoint_url.unwrap_or(relationship.endpoint_url);
                relationship.profile = update.profile.unwrap_or(relationship.profile);
                if let Some(bundle) = update.bundle {
                    bundles::put(sql, &bundle)?;
                    relationship.bundle = Some(bundle);
                }
                let (profile, endpoint_id) = relationship.profile.columns();
                // As in SPIRE, the ID of an endpoint stays in its column when the profile has no use for it.
                sql.run(
                    "UPDATE federated_trust_domains SET updated_at = ?, bundle_endpoint_url = ?, \
                     bundle_endpoint_profile = ?, endpoint_spiffe_id = COALESCE(?, endpoint_spiffe_id) \
                     WHERE trust_domain = ?",
                    values![sql.now(), &relationship.endpoint_url, profile, endpoint_id, trust_domain.name()],
                )?;
                Ok(relationship)
            })
            .await
    }

    /// Ends the relationship with a trust domain, whose bundle stays.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn delete(&self, trust_domain: &TrustDomain) -> Result<(), StoreError> {
        let name = trust_domain.name().to_owned();
        self.store
            .counted(&["federation_relationship.delete"])
            .write(move |sql| {
                let deleted =
                    sql.run("DELETE FROM federated_trust_domains WHERE trust_domain = ?", values![name])?;
                if deleted == 0 { Err(StoreError::not_found()) } else { Ok(()) }
            })
            .await
    }
}

const COLUMNS: &str = "trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id";
const HTTPS_WEB: &str = "https_web";
const HTTPS_SPIFFE: &str = "https_spiffe";

impl EndpointProfile {
    /// The name of the profile, and the ID that goes with it.
    fn columns(&self) -> (&'static str, Option<&str>) {
        match self {
            EndpointProfile::HttpsWeb => (HTTPS_WEB, None),
            EndpointProfile::HttpsSpiffe(id) => (HTTPS_SPIFFE, Some(id.as_str())),
        }
    }
}

fn find(sql: &Sql<'_>, trust_domain: &TrustDomain) -> Result<Option<Relationship>, StoreError> {
    let query = format!("SELECT {COLUMNS} FROM federated_trust_domains WHERE trust_domain = ?");
    let found = sql.row(&query, values![trust_domain.name()], |row| relationship_at(row, 0))?;
    let Some(found) = found else { return Ok(None) };
    Ok(Some(Relationship { bundle: bundles::bundle_of(sql, trust_domain)?, ..found }))
}

/// A relationship whose bundle is still to be looked up.
fn relationship_at(row: &Row<'_>, column: usize) -> Result<Relationship, StoreError> {
    let name = row.text(column)?;
    let bad = |cause: String| StoreError::bad_row("federated_trust_domains", &name, cause);
    let profile = match row.str(column + 2)? {
        HTTPS_WEB => EndpointProfile::HttpsWeb,
        HTTPS_SPIFFE => {
            let id = SpiffeId::parse(row.str(column + 3)?);
            EndpointProfile::HttpsSpiffe(
                id.map_err(|error| bad(format!("unable to parse bundle endpoint SPIFFE ID: {error}")))?,
            )
        }
        other => return Err(bad(format!("unknown bundle endpoint profile type: {other:?}"))),
    };
    Ok(Relationship {
        trust_domain: TrustDomain::parse(&name).map_err(|error| bad(error.to_string()))?,
        endpoint_url: row.text(column + 1)?,
        profile,
        bundle: None,
    })
}
