//! Compiles the `.proto` files without protoc: nothing that is generated is checked in.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

/// Every file, by the path under which gRPC reflection shows it.
const FILES: &[&str] = &[
    "envoy/config/core/v3/base.proto",
    "envoy/config/core/v3/extension.proto",
    "envoy/extensions/transport_sockets/tls/v3/common.proto",
    "envoy/extensions/transport_sockets/tls/v3/secret.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "envoy/service/secret/v3/sds.proto",
    "envoy/type/v3/semantic_version.proto",
    "finial/watch/v1/watch.proto",
    "google/rpc/status.proto",
    "journal.proto",
    "spire/api/agent/debug/v1/debug.proto",
    "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto",
    "spire/api/agent/logger/v1/logger.proto",
    "spire/api/server/agent/v1/agent.proto",
    "spire/api/server/bundle/v1/bundle.proto",
    "spire/api/server/debug/v1/debug.proto",
    "spire/api/server/entry/v1/entry.proto",
    "spire/api/server/localauthority/v1/localauthority.proto",
    "spire/api/server/logger/v1/logger.proto",
    "spire/api/server/svid/v1/svid.proto",
    "spire/api/server/trustdomain/v1/trustdomain.proto",
    "spire/api/types/agent.proto",
    "spire/api/types/attestation.proto",
    "spire/api/types/bundle.proto",
    "spire/api/types/entry.proto",
    "spire/api/types/federateswith.proto",
    "spire/api/types/federationrelationship.proto",
    "spire/api/types/jointoken.proto",
    "spire/api/types/jwtsvid.proto",
    "spire/api/types/logger.proto",
    "spire/api/types/selector.proto",
    "spire/api/types/spiffeid.proto",
    "spire/api/types/status.proto",
    "spire/api/types/witsvid.proto",
    "spire/api/types/x509svid.proto",
    "spire/common/common.proto",
    "workload.proto",
];

/// What an agent sends to many workloads from one cached answer: cloned without copying.
const SHARED_BYTES: &[&str] = &[
    ".X509SVIDResponse",
    ".X509SVID.x509_svid",
    ".X509SVID.x509_svid_key",
    ".X509SVID.bundle",
    ".X509BundlesResponse",
    ".JWTBundlesResponse",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey.x509_svid_key",
    ".spire.api.agent.delegatedidentity.v1.SubscribeToX509BundlesResponse",
    ".spire.api.agent.delegatedidentity.v1.SubscribeToJWTBundlesResponse",
];

/// Messages that hold a private key: `src/secret.rs` gives them a `Debug` that does not show it.
const SECRET: &[&str] = &[
    ".X509SVID",
    ".WITSVID",
    ".envoy.config.core.v3.DataSource",
    ".envoy.service.discovery.v3.DiscoveryResponse",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    let out = Path::new(&out);

    // With source info, so that our comments become documentation.
    let files = protox::compile(FILES, ["proto"])?;

    let mut bare = files.clone();
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(out.join("all.binpb"), bare.encode_to_vec())?;
    let mut sds = bare.clone();
    bare.file.retain(|file| matches!(file.name(), "workload.proto" | "google/protobuf/struct.proto"));
    fs::write(out.join("workload.binpb"), bare.encode_to_vec())?;
    let of_sds = ["envoy/", "google/rpc/", "google/protobuf/struct.proto", "google/protobuf/any.proto"];
    sds.file.retain(|file| of_sds.iter().any(|start| file.name().starts_with(start)));
    fs::write(out.join("sds.binpb"), sds.encode_to_vec())?;

    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    config.bytes(SHARED_BYTES);
    // Maps keep one order, so that equal answers are equal bytes.
    config.btree_map(["."]);
    config.skip_debug(SECRET);
    // The Workload API has no package to name its module after.
    config.default_package_filename("workload");
    tonic_prost_build::configure().compile_fds_with_config(files, config)?;
    Ok(())
}
