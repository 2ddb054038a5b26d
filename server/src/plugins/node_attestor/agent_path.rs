//! `agent_path_template`: from what an attestor found out to the agent's SPIFFE ID.

use finial_daemon::settings::{Section, SettingsError};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::trust_domain::TrustDomain;
use serde_json::Value;

use super::path_template::PathTemplate;

/// A template for what follows `spiffe://<trust domain>/spire/agent`.
#[derive(Debug)]
pub struct AgentPath {
    template: PathTemplate,
}

impl AgentPath {
    /// The setting `agent_path_template`, or `default`. An error is noted in the section, too, so that it is told together
    /// with the others.
    pub fn read(section: &Section, default: &str) -> Result<AgentPath, SettingsError> {
        const KEY: &str = "agent_path_template";
        let text = section.string(KEY).filter(|text| !text.is_empty());
        let text = text.as_deref().unwrap_or(default);
        match PathTemplate::parse(text) {
            Ok(template) => Ok(AgentPath { template }),
            Err(error) => {
                let text = format!("failed to parse agent svid template: {text:?}: {error}");
                section.problem(KEY, &text);
                Err(SettingsError::at(&section.source().file, section.source().at, text))
            }
        }
    }

    /// The agent's ID. `fields` are what the template may name.
    ///
    /// # Errors
    ///
    /// In words.
    pub fn agent_id(&self, trust_domain: &TrustDomain, fields: &Value) -> Result<SpiffeId, String> {
        let path = self.template.render(fields).map_err(|error| error.to_string())?;
        trust_domain.agent_id(&path).map_err(|error| error.to_string())
    }
}
