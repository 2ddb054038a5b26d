//! What servers that share a database tell each other of.

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Entries or agents: there are events to read.
    Rows,
    /// Trust bundles, own or federated.
    Bundles,
}

impl Change {
    pub(in crate::store) const ALL: [Change; 2] = [Change::Rows, Change::Bundles];

    pub(in crate::store) fn name(self) -> &'static str {
        match self {
            Change::Rows => "rows",
            Change::Bundles => "bundles",
        }
    }
}
