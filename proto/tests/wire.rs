//! The wire is SPIRE's: names, numbers and types are compared with a table that was not made from our files.

use std::collections::BTreeSet;

use finial_proto::{
    FILE_DESCRIPTOR_SET, WORKLOAD_FILE_DESCRIPTOR_SET, descriptors, journal, methods, spire::common, workload,
};
use prost::Message;
use prost_reflect::DescriptorPool;

/// Message, field, number, type.
const FIELDS: &[(&str, &str, u32, &str)] = &[
    ("JWTBundlesResponse", "bundles", 1, "map"),
    ("JWTSVID", "spiffe_id", 1, "string"),
    ("JWTSVID", "svid", 2, "string"),
    ("JWTSVID", "hint", 3, "string"),
    ("JWTSVIDRequest", "audience", 1, "repeated string"),
    ("JWTSVIDRequest", "spiffe_id", 2, "string"),
    ("ValidateJWTSVIDRequest", "audience", 1, "string"),
    ("ValidateJWTSVIDRequest", "svid", 2, "string"),
    ("ValidateJWTSVIDResponse", "spiffe_id", 1, "string"),
    ("ValidateJWTSVIDResponse", "claims", 2, "google.protobuf.Struct"),
    ("WITBundlesResponse", "bundles", 1, "map"),
    ("WITSVID", "spiffe_id", 1, "string"),
    ("WITSVID", "wit_svid", 2, "string"),
    ("WITSVID", "wit_svid_key", 3, "string"),
    ("WITSVID", "hint", 4, "string"),
    ("WITSVIDRequest", "spiffe_id", 1, "string"),
    ("X509BundlesResponse", "crl", 1, "repeated bytes"),
    ("X509BundlesResponse", "bundles", 2, "map"),
    ("X509SVID", "spiffe_id", 1, "string"),
    ("X509SVID", "x509_svid", 2, "bytes"),
    ("X509SVID", "x509_svid_key", 3, "bytes"),
    ("X509SVID", "bundle", 4, "bytes"),
    ("X509SVID", "hint", 5, "string"),
    ("X509SVIDResponse", "crl", 2, "repeated bytes"),
    ("X509SVIDResponse", "federated_bundles", 3, "map"),
    ("envoy.config.core.v3.BuildVersion", "version", 1, "envoy.type.v3.SemanticVersion"),
    ("envoy.config.core.v3.DataSource", "inline_bytes", 2, "bytes"),
    ("envoy.config.core.v3.Node", "metadata", 3, "google.protobuf.Struct"),
    ("envoy.config.core.v3.Node", "user_agent_build_version", 8, "envoy.config.core.v3.BuildVersion"),
    ("envoy.config.core.v3.TypedExtensionConfig", "typed_config", 2, "google.protobuf.Any"),
    (
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        "trusted_ca",
        1,
        "envoy.config.core.v3.DataSource",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        "custom_validator_config",
        12,
        "envoy.config.core.v3.TypedExtensionConfig",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        "trust_domains",
        1,
        "repeated envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        "tls_certificate",
        2,
        "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        "validation_context",
        4,
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        "private_key",
        2,
        "envoy.config.core.v3.DataSource",
    ),
    ("envoy.service.discovery.v3.DiscoveryRequest", "resource_names", 3, "repeated string"),
    ("envoy.service.discovery.v3.DiscoveryRequest", "response_nonce", 5, "string"),
    ("envoy.service.discovery.v3.DiscoveryRequest", "error_detail", 6, "google.rpc.Status"),
    ("envoy.service.discovery.v3.DiscoveryResponse", "resources", 2, "repeated google.protobuf.Any"),
    ("envoy.service.discovery.v3.DiscoveryResponse", "type_url", 4, "string"),
    ("envoy.service.discovery.v3.DiscoveryResponse", "nonce", 5, "string"),
    ("journal.JWTKeyEntry", "slot_id", 1, "string"),
    ("journal.JWTKeyEntry", "issued_at", 2, "int64"),
    ("journal.JWTKeyEntry", "not_after", 3, "int64"),
    ("journal.JWTKeyEntry", "kid", 4, "string"),
    ("journal.JWTKeyEntry", "public_key", 5, "bytes"),
    ("journal.JWTKeyEntry", "authority_id", 7, "string"),
    ("journal.WITKeyEntry", "slot_id", 1, "string"),
    ("journal.WITKeyEntry", "issued_at", 2, "int64"),
    ("journal.WITKeyEntry", "not_after", 3, "int64"),
    ("journal.WITKeyEntry", "kid", 4, "string"),
    ("journal.WITKeyEntry", "public_key", 5, "bytes"),
    ("journal.WITKeyEntry", "authority_id", 7, "string"),
    ("journal.X509CAEntry", "slot_id", 1, "string"),
    ("journal.X509CAEntry", "issued_at", 2, "int64"),
    ("journal.X509CAEntry", "certificate", 3, "bytes"),
    ("journal.X509CAEntry", "upstream_chain", 4, "repeated bytes"),
    ("journal.X509CAEntry", "authority_id", 6, "string"),
    ("journal.X509CAEntry", "not_after", 7, "int64"),
    ("journal.X509CAEntry", "upstream_authority_id", 8, "string"),
    ("spire.agent.debug.v1.GetInfoResponse", "last_sync_success", 4, "int64"),
    ("spire.agent.debug.v1.GetInfoResponse.Cert", "id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.agent.delegatedidentity.v1.FetchJWTSVIDsRequest", "audience", 1, "repeated string"),
    ("spire.api.agent.delegatedidentity.v1.X509SVIDWithKey", "x509_svid_key", 2, "bytes"),
    ("spire.api.agent.logger.v1.SetLogLevelRequest", "new_level", 1, "spire.api.types.LogLevel"),
    ("spire.api.server.agent.v1.AgentX509SVIDParams", "csr", 1, "bytes"),
    ("spire.api.server.agent.v1.AttestAgentRequest", "challenge_response", 2, "bytes"),
    ("spire.api.server.agent.v1.AttestAgentRequest.Params", "data", 1, "spire.api.types.AttestationData"),
    ("spire.api.server.agent.v1.AttestAgentResponse", "challenge", 2, "bytes"),
    ("spire.api.server.agent.v1.AttestAgentResponse.Result", "svid", 1, "spire.api.types.X509SVID"),
    ("spire.api.server.agent.v1.AttestAgentResponse.Result", "reattestable", 2, "bool"),
    ("spire.api.server.agent.v1.BanAgentRequest", "id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.server.agent.v1.CountAgentsRequest.Filter", "by_attestation_type", 1, "string"),
    (
        "spire.api.server.agent.v1.CountAgentsRequest.Filter",
        "by_selector_match",
        2,
        "spire.api.types.SelectorMatch",
    ),
    ("spire.api.server.agent.v1.CountAgentsRequest.Filter", "by_banned", 3, "google.protobuf.BoolValue"),
    (
        "spire.api.server.agent.v1.CountAgentsRequest.Filter",
        "by_can_reattest",
        4,
        "google.protobuf.BoolValue",
    ),
    ("spire.api.server.agent.v1.CountAgentsRequest.Filter", "by_expires_before", 5, "string"),
    ("spire.api.server.agent.v1.CountAgentsResponse", "count", 1, "int32"),
    ("spire.api.server.agent.v1.CreateJoinTokenRequest", "ttl", 1, "int32"),
    ("spire.api.server.agent.v1.CreateJoinTokenRequest", "token", 2, "string"),
    ("spire.api.server.agent.v1.CreateJoinTokenRequest", "agent_id", 3, "spire.api.types.SPIFFEID"),
    ("spire.api.server.agent.v1.DeleteAgentRequest", "id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.server.agent.v1.GetAgentRequest", "id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.server.agent.v1.GetAgentRequest", "output_mask", 2, "spire.api.types.AgentMask"),
    ("spire.api.server.agent.v1.ListAgentsRequest", "output_mask", 2, "spire.api.types.AgentMask"),
    ("spire.api.server.agent.v1.ListAgentsRequest", "page_size", 3, "int32"),
    ("spire.api.server.agent.v1.ListAgentsRequest", "page_token", 4, "string"),
    ("spire.api.server.agent.v1.ListAgentsRequest.Filter", "by_attestation_type", 1, "string"),
    (
        "spire.api.server.agent.v1.ListAgentsRequest.Filter",
        "by_selector_match",
        2,
        "spire.api.types.SelectorMatch",
    ),
    ("spire.api.server.agent.v1.ListAgentsRequest.Filter", "by_banned", 3, "google.protobuf.BoolValue"),
    ("spire.api.server.agent.v1.ListAgentsRequest.Filter", "by_can_reattest", 4, "google.protobuf.BoolValue"),
    ("spire.api.server.agent.v1.ListAgentsRequest.Filter", "by_expires_before", 5, "string"),
    ("spire.api.server.agent.v1.ListAgentsResponse", "agents", 1, "repeated spire.api.types.Agent"),
    ("spire.api.server.agent.v1.ListAgentsResponse", "next_page_token", 2, "string"),
    ("spire.api.server.agent.v1.PostStatusRequest", "current_bundle_serial", 1, "uint64"),
    ("spire.api.server.agent.v1.PostStatusRequest", "agent_version", 2, "string"),
    ("spire.api.server.agent.v1.RenewAgentResponse", "svid", 1, "spire.api.types.X509SVID"),
    ("spire.api.server.bundle.v1.AppendBundleRequest", "output_mask", 3, "spire.api.types.BundleMask"),
    (
        "spire.api.server.bundle.v1.BatchCreateFederatedBundleResponse.Result",
        "status",
        1,
        "spire.api.types.Status",
    ),
    (
        "spire.api.server.bundle.v1.BatchSetFederatedBundleResponse.Result",
        "bundle",
        2,
        "spire.api.types.Bundle",
    ),
    (
        "spire.api.server.bundle.v1.BatchUpdateFederatedBundleResponse.Result",
        "status",
        1,
        "spire.api.types.Status",
    ),
    ("spire.api.server.bundle.v1.ListFederatedBundlesResponse", "next_page_token", 2, "string"),
    (
        "spire.api.server.bundle.v1.PublishWITAuthorityResponse",
        "wit_authorities",
        1,
        "repeated spire.api.types.WITKey",
    ),
    ("spire.api.server.debug.v1.GetInfoResponse", "entries_count", 5, "int32"),
    ("spire.api.server.debug.v1.GetInfoResponse.Cert", "expires_at", 2, "int64"),
    ("spire.api.server.entry.v1.BatchCreateEntryRequest", "entries", 1, "repeated spire.api.types.Entry"),
    ("spire.api.server.entry.v1.BatchCreateEntryRequest", "output_mask", 2, "spire.api.types.EntryMask"),
    ("spire.api.server.entry.v1.BatchCreateEntryResponse.Result", "status", 1, "spire.api.types.Status"),
    ("spire.api.server.entry.v1.BatchCreateEntryResponse.Result", "entry", 2, "spire.api.types.Entry"),
    ("spire.api.server.entry.v1.BatchDeleteEntryRequest", "ids", 1, "repeated string"),
    ("spire.api.server.entry.v1.BatchDeleteEntryResponse.Result", "status", 1, "spire.api.types.Status"),
    ("spire.api.server.entry.v1.BatchDeleteEntryResponse.Result", "id", 2, "string"),
    ("spire.api.server.entry.v1.BatchUpdateEntryRequest", "entries", 1, "repeated spire.api.types.Entry"),
    ("spire.api.server.entry.v1.BatchUpdateEntryRequest", "input_mask", 2, "spire.api.types.EntryMask"),
    ("spire.api.server.entry.v1.BatchUpdateEntryRequest", "output_mask", 3, "spire.api.types.EntryMask"),
    ("spire.api.server.entry.v1.BatchUpdateEntryResponse.Result", "status", 1, "spire.api.types.Status"),
    ("spire.api.server.entry.v1.BatchUpdateEntryResponse.Result", "entry", 2, "spire.api.types.Entry"),
    ("spire.api.server.entry.v1.CountEntriesRequest.Filter", "by_spiffe_id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.server.entry.v1.CountEntriesRequest.Filter", "by_parent_id", 2, "spire.api.types.SPIFFEID"),
    (
        "spire.api.server.entry.v1.CountEntriesRequest.Filter",
        "by_selectors",
        3,
        "spire.api.types.SelectorMatch",
    ),
    (
        "spire.api.server.entry.v1.CountEntriesRequest.Filter",
        "by_federates_with",
        4,
        "spire.api.types.FederatesWithMatch",
    ),
    ("spire.api.server.entry.v1.CountEntriesRequest.Filter", "by_hint", 5, "google.protobuf.StringValue"),
    ("spire.api.server.entry.v1.CountEntriesRequest.Filter", "by_downstream", 6, "google.protobuf.BoolValue"),
    ("spire.api.server.entry.v1.CountEntriesResponse", "count", 1, "int32"),
    ("spire.api.server.entry.v1.EntryRevision", "id", 1, "string"),
    ("spire.api.server.entry.v1.EntryRevision", "revision_number", 2, "int64"),
    ("spire.api.server.entry.v1.EntryRevision", "created_at", 3, "int64"),
    ("spire.api.server.entry.v1.GetAuthorizedEntriesRequest", "output_mask", 1, "spire.api.types.EntryMask"),
    (
        "spire.api.server.entry.v1.GetAuthorizedEntriesResponse",
        "entries",
        1,
        "repeated spire.api.types.Entry",
    ),
    ("spire.api.server.entry.v1.GetEntryRequest", "id", 1, "string"),
    ("spire.api.server.entry.v1.GetEntryRequest", "output_mask", 2, "spire.api.types.EntryMask"),
    ("spire.api.server.entry.v1.ListEntriesRequest", "output_mask", 2, "spire.api.types.EntryMask"),
    ("spire.api.server.entry.v1.ListEntriesRequest", "page_size", 3, "int32"),
    ("spire.api.server.entry.v1.ListEntriesRequest", "page_token", 4, "string"),
    ("spire.api.server.entry.v1.ListEntriesRequest.Filter", "by_spiffe_id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.server.entry.v1.ListEntriesRequest.Filter", "by_parent_id", 2, "spire.api.types.SPIFFEID"),
    (
        "spire.api.server.entry.v1.ListEntriesRequest.Filter",
        "by_selectors",
        3,
        "spire.api.types.SelectorMatch",
    ),
    (
        "spire.api.server.entry.v1.ListEntriesRequest.Filter",
        "by_federates_with",
        4,
        "spire.api.types.FederatesWithMatch",
    ),
    ("spire.api.server.entry.v1.ListEntriesRequest.Filter", "by_hint", 5, "google.protobuf.StringValue"),
    ("spire.api.server.entry.v1.ListEntriesRequest.Filter", "by_downstream", 6, "google.protobuf.BoolValue"),
    ("spire.api.server.entry.v1.ListEntriesResponse", "entries", 1, "repeated spire.api.types.Entry"),
    ("spire.api.server.entry.v1.ListEntriesResponse", "next_page_token", 2, "string"),
    ("spire.api.server.entry.v1.SyncAuthorizedEntriesRequest", "output_mask", 1, "spire.api.types.EntryMask"),
    ("spire.api.server.entry.v1.SyncAuthorizedEntriesRequest", "ids", 2, "repeated string"),
    (
        "spire.api.server.entry.v1.SyncAuthorizedEntriesResponse",
        "entries",
        2,
        "repeated spire.api.types.Entry",
    ),
    ("spire.api.server.entry.v1.SyncAuthorizedEntriesResponse", "more", 3, "bool"),
    ("spire.api.server.localauthority.v1.AuthorityState", "expires_at", 2, "int64"),
    ("spire.api.server.localauthority.v1.RevokeX509AuthorityRequest", "authority_id", 1, "string"),
    ("spire.api.server.localauthority.v1.TaintX509AuthorityRequest", "authority_id", 1, "string"),
    ("spire.api.server.svid.v1.BatchNewWITSVIDResponse.Result", "status", 1, "spire.api.types.Status"),
    ("spire.api.server.svid.v1.BatchNewWITSVIDResponse.Result", "svid", 2, "spire.api.types.WITSVID"),
    ("spire.api.server.svid.v1.BatchNewX509SVIDResponse.Result", "status", 1, "spire.api.types.Status"),
    ("spire.api.server.svid.v1.BatchNewX509SVIDResponse.Result", "svid", 2, "spire.api.types.X509SVID"),
    ("spire.api.server.svid.v1.MintJWTSVIDRequest", "id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.server.svid.v1.MintJWTSVIDRequest", "audience", 2, "repeated string"),
    ("spire.api.server.svid.v1.MintJWTSVIDRequest", "ttl", 3, "int32"),
    ("spire.api.server.svid.v1.MintJWTSVIDResponse", "svid", 1, "spire.api.types.JWTSVID"),
    ("spire.api.server.svid.v1.MintWITSVIDRequest", "id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.server.svid.v1.MintWITSVIDRequest", "public_key", 2, "bytes"),
    ("spire.api.server.svid.v1.MintWITSVIDRequest", "ttl", 3, "int32"),
    ("spire.api.server.svid.v1.MintWITSVIDRequest", "signing_algorithm", 4, "string"),
    ("spire.api.server.svid.v1.MintWITSVIDResponse", "svid", 1, "spire.api.types.WITSVID"),
    ("spire.api.server.svid.v1.MintX509SVIDRequest", "csr", 1, "bytes"),
    ("spire.api.server.svid.v1.MintX509SVIDRequest", "ttl", 2, "int32"),
    ("spire.api.server.svid.v1.MintX509SVIDResponse", "svid", 1, "spire.api.types.X509SVID"),
    ("spire.api.server.svid.v1.NewDownstreamX509CARequest", "csr", 1, "bytes"),
    ("spire.api.server.svid.v1.NewDownstreamX509CARequest", "preferred_ttl", 2, "int32"),
    ("spire.api.server.svid.v1.NewDownstreamX509CAResponse", "ca_cert_chain", 1, "repeated bytes"),
    ("spire.api.server.svid.v1.NewDownstreamX509CAResponse", "x509_authorities", 2, "repeated bytes"),
    ("spire.api.server.svid.v1.NewJWTSVIDRequest", "entry_id", 1, "string"),
    ("spire.api.server.svid.v1.NewJWTSVIDRequest", "audience", 2, "repeated string"),
    ("spire.api.server.svid.v1.NewJWTSVIDResponse", "svid", 1, "spire.api.types.JWTSVID"),
    ("spire.api.server.svid.v1.NewWITSVIDParams", "entry_id", 1, "string"),
    ("spire.api.server.svid.v1.NewWITSVIDParams", "public_key", 2, "bytes"),
    ("spire.api.server.svid.v1.NewWITSVIDParams", "signing_algorithm", 3, "string"),
    ("spire.api.server.svid.v1.NewX509SVIDParams", "entry_id", 1, "string"),
    ("spire.api.server.svid.v1.NewX509SVIDParams", "csr", 2, "bytes"),
    (
        "spire.api.server.trustdomain.v1.BatchCreateFederationRelationshipRequest",
        "federation_relationships",
        1,
        "repeated spire.api.types.FederationRelationship",
    ),
    (
        "spire.api.server.trustdomain.v1.BatchDeleteFederationRelationshipResponse.Result",
        "status",
        1,
        "spire.api.types.Status",
    ),
    (
        "spire.api.server.trustdomain.v1.BatchUpdateFederationRelationshipRequest",
        "input_mask",
        2,
        "spire.api.types.FederationRelationshipMask",
    ),
    ("spire.api.server.trustdomain.v1.ListFederationRelationshipsRequest", "page_token", 3, "string"),
    ("spire.api.types.Agent", "id", 1, "spire.api.types.SPIFFEID"),
    ("spire.api.types.Agent", "attestation_type", 2, "string"),
    ("spire.api.types.Agent", "x509svid_serial_number", 3, "string"),
    ("spire.api.types.Agent", "x509svid_expires_at", 4, "int64"),
    ("spire.api.types.Agent", "selectors", 5, "repeated spire.api.types.Selector"),
    ("spire.api.types.Agent", "banned", 6, "bool"),
    ("spire.api.types.Agent", "can_reattest", 7, "bool"),
    ("spire.api.types.Agent", "agent_version", 8, "string"),
    ("spire.api.types.AgentMask", "x509svid_expires_at", 4, "bool"),
    ("spire.api.types.AttestationData", "type", 1, "string"),
    ("spire.api.types.Bundle", "trust_domain", 1, "string"),
    ("spire.api.types.Bundle", "refresh_hint", 4, "int64"),
    ("spire.api.types.Bundle", "sequence_number", 5, "uint64"),
    ("spire.api.types.BundleMask", "sequence_number", 5, "bool"),
    ("spire.api.types.Entry", "id", 1, "string"),
    ("spire.api.types.Entry", "spiffe_id", 2, "spire.api.types.SPIFFEID"),
    ("spire.api.types.Entry", "parent_id", 3, "spire.api.types.SPIFFEID"),
    ("spire.api.types.Entry", "selectors", 4, "repeated spire.api.types.Selector"),
    ("spire.api.types.Entry", "x509_svid_ttl", 5, "int32"),
    ("spire.api.types.Entry", "federates_with", 6, "repeated string"),
    ("spire.api.types.Entry", "admin", 7, "bool"),
    ("spire.api.types.Entry", "downstream", 8, "bool"),
    ("spire.api.types.Entry", "expires_at", 9, "int64"),
    ("spire.api.types.Entry", "dns_names", 10, "repeated string"),
    ("spire.api.types.Entry", "revision_number", 11, "int64"),
    ("spire.api.types.Entry", "store_svid", 12, "bool"),
    ("spire.api.types.Entry", "jwt_svid_ttl", 13, "int32"),
    ("spire.api.types.Entry", "hint", 14, "string"),
    ("spire.api.types.Entry", "created_at", 15, "int64"),
    ("spire.api.types.Entry.AdditionalAttributes", "disable_x509_svid_prefetch", 1, "bool"),
    ("spire.api.types.Entry.AdditionalAttributes", "jwt_svid_include_jti", 2, "bool"),
    ("spire.api.types.EntryMask", "x509_svid_ttl", 5, "bool"),
    ("spire.api.types.EntryMask", "dns_names", 10, "bool"),
    ("spire.api.types.EntryMask", "created_at", 15, "bool"),
    ("spire.api.types.FederationRelationship", "trust_domain", 1, "string"),
    ("spire.api.types.FederationRelationship", "bundle_endpoint_url", 2, "string"),
    ("spire.api.types.FederationRelationship", "trust_domain_bundle", 5, "spire.api.types.Bundle"),
    ("spire.api.types.FederationRelationshipMask", "bundle_endpoint_profile", 2, "bool"),
    ("spire.api.types.JWTKey", "public_key", 1, "bytes"),
    ("spire.api.types.JWTKey", "key_id", 2, "string"),
    ("spire.api.types.JWTKey", "expires_at", 3, "int64"),
    ("spire.api.types.JWTKey", "tainted", 4, "bool"),
    ("spire.api.types.JWTSVID", "token", 1, "string"),
    ("spire.api.types.JWTSVID", "id", 2, "spire.api.types.SPIFFEID"),
    ("spire.api.types.JWTSVID", "expires_at", 3, "int64"),
    ("spire.api.types.JWTSVID", "issued_at", 4, "int64"),
    ("spire.api.types.JWTSVID", "hint", 5, "string"),
    ("spire.api.types.SPIFFEID", "trust_domain", 1, "string"),
    ("spire.api.types.SPIFFEID", "path", 2, "string"),
    ("spire.api.types.Selector", "type", 1, "string"),
    ("spire.api.types.Selector", "value", 2, "string"),
    ("spire.api.types.Status", "message", 2, "string"),
    ("spire.api.types.WITKey", "public_key", 1, "bytes"),
    ("spire.api.types.WITKey", "key_id", 2, "string"),
    ("spire.api.types.WITKey", "expires_at", 3, "int64"),
    ("spire.api.types.WITKey", "tainted", 4, "bool"),
    ("spire.api.types.WITSVID", "hint", 5, "string"),
    ("spire.api.types.X509Certificate", "asn1", 1, "bytes"),
    ("spire.api.types.X509Certificate", "tainted", 2, "bool"),
    ("spire.api.types.X509SVID", "cert_chain", 1, "repeated bytes"),
    ("spire.api.types.X509SVID", "id", 2, "spire.api.types.SPIFFEID"),
    ("spire.api.types.X509SVID", "expires_at", 3, "int64"),
    ("spire.api.types.X509SVID", "hint", 4, "string"),
    ("spire.common.Bundle", "trust_domain_id", 1, "string"),
    ("spire.common.Bundle", "refresh_hint", 4, "int64"),
    ("spire.common.Bundle", "sequence_number", 5, "uint64"),
    ("spire.common.Certificate", "der_bytes", 1, "bytes"),
    ("spire.common.Certificate", "tainted_key", 2, "bool"),
    ("spire.common.PublicKey", "pkix_bytes", 1, "bytes"),
    ("spire.common.PublicKey", "kid", 2, "string"),
    ("spire.common.PublicKey", "not_after", 3, "int64"),
    ("spire.common.PublicKey", "tainted_key", 4, "bool"),
    ("spire.common.RegistrationEntry", "parent_id", 2, "string"),
    ("spire.common.RegistrationEntry", "spiffe_id", 3, "string"),
    ("spire.common.RegistrationEntry", "x509_svid_ttl", 4, "int32"),
    ("spire.common.RegistrationEntry", "federates_with", 5, "repeated string"),
    ("spire.common.RegistrationEntry", "entry_id", 6, "string"),
    ("spire.common.RegistrationEntry", "admin", 7, "bool"),
    ("spire.common.RegistrationEntry", "downstream", 8, "bool"),
    ("spire.common.RegistrationEntry", "entryExpiry", 9, "int64"),
    ("spire.common.RegistrationEntry", "dns_names", 10, "repeated string"),
    ("spire.common.RegistrationEntry", "revision_number", 11, "int64"),
    ("spire.common.RegistrationEntry", "store_svid", 12, "bool"),
    ("spire.common.RegistrationEntry", "jwt_svid_ttl", 13, "int32"),
    ("spire.common.RegistrationEntry", "hint", 14, "string"),
    ("spire.common.RegistrationEntry", "created_at", 15, "int64"),
    ("spire.common.RegistrationEntry.AdditionalAttributes", "disable_x509_svid_prefetch", 1, "bool"),
    ("spire.common.RegistrationEntry.AdditionalAttributes", "jwt_svid_include_jti", 2, "bool"),
];

#[test]
fn numbers_and_types_are_those_of_spire() {
    for &(message, field, number, kind) in FIELDS {
        let descriptor = descriptors().get_message_by_name(message).expect(message);
        let descriptor = descriptor.get_field_by_name(field).unwrap_or_else(|| panic!("{message}.{field}"));
        assert_eq!(descriptor.number(), number, "{message}.{field}");
        let actual = match descriptor.kind() {
            _ if descriptor.is_map() => "map".to_owned(),
            kind if descriptor.is_list() => format!("repeated {kind:?}"),
            kind => format!("{kind:?}"),
        };
        assert_eq!(actual, kind, "{message}.{field}");
    }
}

#[test]
fn bytes_are_those_of_spire() {
    // Written out by hand from the field numbers.
    let bundle = common::Bundle {
        trust_domain_id: "spiffe://t".into(),
        root_cas: vec![common::Certificate { der_bytes: vec![0x30], tainted_key: true }],
        wit_signing_keys: vec![common::PublicKey { kid: "k".into(), ..Default::default() }],
        sequence_number: 300,
        ..Default::default()
    };
    assert_eq!(
        bundle.encode_to_vec(),
        [
            b"\x0a\x0aspiffe://t".as_slice(),
            b"\x12\x05\x0a\x010\x10\x01",
            b"\x28\xac\x02",
            b"\x32\x03\x12\x01k"
        ]
        .concat()
    );
    let entries = journal::Entries {
        wit_keys: vec![journal::WitKeyEntry { slot_id: "A".into(), status: 4, ..Default::default() }],
        ..Default::default()
    };
    assert_eq!(entries.encode_to_vec(), b"\x1a\x05\x0a\x01A\x30\x04");
    assert_eq!(journal::Status::try_from(4), Ok(journal::Status::Old));
}

#[test]
fn every_method_is_listed_once() {
    let methods = methods();
    let unique: BTreeSet<_> = methods.iter().cloned().collect();
    assert_eq!(unique.len(), methods.len());
    assert_eq!(unique.into_iter().collect::<Vec<_>>(), methods, "sorted");

    let count = |service: &str| methods.iter().filter(|(s, _)| s == service).count();
    let services: BTreeSet<_> = methods.iter().map(|(s, _)| s.as_str()).collect();
    let expected = [
        ("SpiffeWorkloadAPI", 7),
        ("envoy.service.secret.v3.SecretDiscoveryService", 3),
        ("finial.watch.v1.Watch", 1),
        ("spire.agent.debug.v1.Debug", 1),
        ("spire.api.agent.delegatedidentity.v1.DelegatedIdentity", 4),
        ("spire.api.agent.logger.v1.Logger", 3),
        ("spire.api.server.agent.v1.Agent", 9),
        ("spire.api.server.bundle.v1.Bundle", 11),
        ("spire.api.server.debug.v1.Debug", 1),
        ("spire.api.server.entry.v1.Entry", 8),
        ("spire.api.server.localauthority.v1.LocalAuthority", 17),
        ("spire.api.server.logger.v1.Logger", 3),
        ("spire.api.server.svid.v1.SVID", 7),
        ("spire.api.server.trustdomain.v1.TrustDomain", 6),
    ];
    assert_eq!(services.into_iter().map(|s| (s, count(s))).collect::<Vec<_>>(), expected);
}

#[test]
fn the_workload_set_shows_the_workload_api_and_stands_alone() {
    let pool = DescriptorPool::decode(WORKLOAD_FILE_DESCRIPTOR_SET).unwrap();
    assert_eq!(pool.services().map(|s| s.full_name().to_owned()).collect::<Vec<_>>(), ["SpiffeWorkloadAPI"]);
    assert!(WORKLOAD_FILE_DESCRIPTOR_SET.len() < FILE_DESCRIPTOR_SET.len());
}

#[test]
fn source_info_is_not_shipped() {
    for set in [FILE_DESCRIPTOR_SET, WORKLOAD_FILE_DESCRIPTOR_SET] {
        let set = prost_types::FileDescriptorSet::decode(set).unwrap();
        assert!(set.file.iter().all(|file| file.source_code_info.is_none()));
    }
}

#[test]
fn a_cached_workload_answer_is_cloned_without_copying() {
    let key = bytes::Bytes::from(vec![1; 64]);
    let mut reply = workload::X509svidResponse::default();
    reply.federated_bundles.insert("spiffe://t".into(), key.clone());
    reply.svids.push(workload::X509svid { x509_svid_key: key.clone(), ..Default::default() });
    let copy = reply.clone();
    assert_eq!(copy.svids[0].x509_svid_key.as_ptr(), key.as_ptr());
    assert_eq!(copy.federated_bundles["spiffe://t"].as_ptr(), key.as_ptr());
}

#[test]
fn debug_output_hides_private_keys() {
    let x509 = workload::X509svid { x509_svid_key: b"hunter2".to_vec().into(), ..Default::default() };
    let wit = workload::Witsvid { wit_svid_key: "hunter2".into(), ..Default::default() };
    let delegated = finial_proto::spire::api::agent::delegatedidentity::v1::X509svidWithKey {
        x509_svid_key: b"hunter2".to_vec().into(),
        ..Default::default()
    };
    for text in [format!("{x509:?}"), format!("{wit:?}"), format!("{delegated:?}")] {
        assert!(text.contains("<private key>"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("104, 117, 110"), "{text}");
    }
}
