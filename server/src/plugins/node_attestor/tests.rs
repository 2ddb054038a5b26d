use finial_daemon::settings::{parse, plugin_stanzas};
use std::time::SystemTime;

use super::exchange::AgentEnd;
use super::*;
use crate::entries::fixture::td;
use crate::store::OpenSettings;

async fn host() -> Host {
    let clock = Clock::paused(SystemTime::UNIX_EPOCH);
    let store = Store::open(OpenSettings::new(":memory:", td(), clock.clone())).await.unwrap();
    Host { trust_domain: td(), store, clock }
}

async fn configure(plugins: &str) -> Result<NodeAttestors, String> {
    let file = parse(&format!("plugins {{\n{plugins}\n}}"), "server.conf").unwrap();
    NodeAttestors::configure(&plugin_stanzas(&file).unwrap(), &host().await)
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn join_tokens_need_no_stanza() {
    for plugins in [
        "",
        "NodeAttestor \"join_token\" { plugin_data {} }",
        "KeyManager \"memory\" { plugin_data {} }",
        "NodeAttestor \"x509pop\" { enabled = false\n plugin_data { } }",
    ] {
        let attestors = configure(plugins).await.unwrap();
        assert!(attestors.get("join_token").is_some(), "{plugins}");
        assert!(attestors.get("x509pop").is_none(), "{plugins}");
    }
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name_with_what_there_is() {
    for name in NOT_BUILT.iter().chain(&["made_up"]) {
        let error = configure(&format!("NodeAttestor \"{name}\" {{ plugin_data {{}} }}")).await.unwrap_err();
        assert!(
            error.contains(name) && error.contains("join_token") && error.contains("server.conf:2"),
            "{error}"
        );
    }
    let error = configure("NodeAttestor \"join_token\" { plugin_cmd = \"/bin/x\" }").await.unwrap_err();
    assert!(error.contains("plugin_cmd"), "{error}");
    let error = configure("NodeAttestor \"join_token\" { plugin_data { tokn = 1 } }").await.unwrap_err();
    assert!(error.contains("tokn"), "{error}");
}

#[tokio::test]
async fn an_exchange_carries_any_number_of_rounds_and_notices_the_end() {
    let (mut exchange, AgentEnd { mut challenges, responses }) = exchange::pair();
    let agent = tokio::spawn(async move {
        while let Some(mut challenge) = challenges.recv().await {
            challenge.reverse();
            if challenge == [0] || responses.send(challenge).await.is_err() {
                return;
            }
        }
    });
    for round in 1..4_u8 {
        assert_eq!(exchange.ask(vec![round, 7]).await.unwrap(), [7, round]);
    }
    let fault = exchange.ask(vec![0]).await.unwrap_err();
    assert_eq!(
        (fault.code, fault.message.as_str()),
        (Code::Internal, "failed to receive challenge from agent")
    );
    agent.await.unwrap();
    let fault = exchange.ask(vec![1]).await.unwrap_err();
    assert_eq!(fault.message, "failed to send challenge to agent");
}
