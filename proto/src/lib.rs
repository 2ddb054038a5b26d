//! The wire and nothing else: SPIRE's server and agent APIs, the SPIFFE Workload API, Envoy's secret discovery, the blobs
//! in SPIRE's database, and Finial's own [`finial::watch::v1`].
//!
//! The modules mirror the protobuf packages. Two files have no package of their own and are placed in
//! [`workload`] and [`journal`]. The `.proto` files are written for this project; names, numbers and types
//! are those of SPIRE, since bytes and JSON have to be the same.
//!
//! # Invariants
//!
//! - No rule lives here. A message that decodes may still be nonsense; values are checked where they enter
//!   `identity`.
//! - Nothing generated is checked in, and no protoc is needed.
//! - `Debug` of a message never shows a private key.
//! - Maps are ordered, so that equal messages encode to equal bytes.
//!
//! # Blobs that must survive a rewrite
//!
//! prost drops fields that it does not know. On the network this is right. It is wrong for what is read from the
//! database, changed and written back, because a newer server may have put a field there:
//! [`spire::common::Bundle`] (with its certificates and keys),
//! [`spire::common::registration_entry::AdditionalAttributes`] and [`journal::Entries`] (with its
//! elements). Whoever rewrites one of these must carry the unknown fields over, for example by changing a
//! [`prost_reflect::DynamicMessage`] of [`descriptors`], which keeps them. A blob that is only read, or whose row is
//! copied as bytes, needs no care.

pub mod json;
mod secret;

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// All files of this crate and the well-known types that they import, without source info.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/all.binpb"));

/// Only the Workload API and what it imports: all that an agent's public socket shows by reflection.
pub const WORKLOAD_FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload.binpb"));

/// Envoy's secret discovery and what it imports, as far as it is served.
pub const SDS_FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sds.binpb"));

/// [`FILE_DESCRIPTOR_SET`], decoded once.
pub fn descriptors() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        // The set is fixed when this crate is built; every test of this crate decodes it.
        #[allow(clippy::expect_used)]
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the built-in descriptor set is valid")
    });
    &POOL
}

/// Every method of every service, as (full service name, method name), sorted.
pub fn methods() -> Vec<(String, String)> {
    let mut methods: Vec<_> = descriptors()
        .services()
        .flat_map(|service| {
            let name = service.full_name().to_owned();
            service.methods().map(|m| (name.clone(), m.name().to_owned())).collect::<Vec<_>>()
        })
        .collect();
    methods.sort();
    methods
}

/// One generated file.
macro_rules! generated {
    ($package:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
    };
}

// The allowances on these modules are for code that nobody here wrote.

/// The SPIFFE Workload API (no protobuf package).
#[allow(clippy::all, clippy::pedantic, rustdoc::all, rust_2018_idioms)]
pub mod workload {
    generated!("workload");
}

/// The blob in `ca_journals.data`. Read the note on rewriting in the crate's documentation.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, rust_2018_idioms)]
pub mod journal {
    generated!("journal");
}

/// Envoy's packages, as far as secret discovery needs them.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, rust_2018_idioms)]
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                generated!("envoy.config.core.v3");
            }
        }
    }
    pub mod extensions {
        pub mod transport_sockets {
            pub mod tls {
                pub mod v3 {
                    generated!("envoy.extensions.transport_sockets.tls.v3");
                }
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                generated!("envoy.service.discovery.v3");
            }
        }
        pub mod secret {
            pub mod v3 {
                generated!("envoy.service.secret.v3");
            }
        }
    }
    pub mod r#type {
        pub mod v3 {
            generated!("envoy.r#type.v3");
        }
    }
}

/// Google's packages.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, rust_2018_idioms)]
pub mod google {
    pub mod rpc {
        generated!("google.rpc");
    }
}

/// SPIRE's packages.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, rust_2018_idioms)]
pub mod spire {
    /// Stored blobs. Read the note on rewriting in the crate's documentation.
    pub mod common {
        generated!("spire.common");
    }
    /// The agent's debug service, whose package is not below `spire.api`.
    pub mod agent {
        pub mod debug {
            pub mod v1 {
                generated!("spire.agent.debug.v1");
            }
        }
    }
    pub mod api {
        /// Messages that the services share.
        pub mod types {
            generated!("spire.api.types");
        }
        /// Services of the agent's admin socket.
        pub mod agent {
            pub mod delegatedidentity {
                pub mod v1 {
                    generated!("spire.api.agent.delegatedidentity.v1");
                }
            }
            pub mod logger {
                pub mod v1 {
                    generated!("spire.api.agent.logger.v1");
                }
            }
        }
        /// Services of the server.
        pub mod server {
            pub mod agent {
                pub mod v1 {
                    generated!("spire.api.server.agent.v1");
                }
            }
            pub mod bundle {
                pub mod v1 {
                    generated!("spire.api.server.bundle.v1");
                }
            }
            pub mod debug {
                pub mod v1 {
                    generated!("spire.api.server.debug.v1");
                }
            }
            pub mod entry {
                pub mod v1 {
                    generated!("spire.api.server.entry.v1");
                }
            }
            pub mod localauthority {
                pub mod v1 {
                    generated!("spire.api.server.localauthority.v1");
                }
            }
            pub mod logger {
                pub mod v1 {
                    generated!("spire.api.server.logger.v1");
                }
            }
            pub mod svid {
                pub mod v1 {
                    generated!("spire.api.server.svid.v1");
                }
            }
            pub mod trustdomain {
                pub mod v1 {
                    generated!("spire.api.server.trustdomain.v1");
                }
            }
        }
    }
}

/// Finial's own packages.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, rust_2018_idioms)]
pub mod finial {
    /// Push of authorized entries from server to agent.
    pub mod watch {
        pub mod v1 {
            generated!("finial.watch.v1");
        }
    }
}
