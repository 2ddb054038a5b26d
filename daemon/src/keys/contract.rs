//! What every key manager does, run against each of them.

use super::*;

/// Runs the whole suite against an empty key manager.
pub(super) async fn holds(keys: &dyn KeyManager) {
    starts_empty(keys).await;
    generates_every_type(keys).await;
    replaces_by_id(keys).await;
    refuses_an_empty_id(keys).await;
    serves_many_at_once(keys).await;
}

async fn starts_empty(keys: &dyn KeyManager) {
    assert!(keys.list().await.unwrap().is_empty());
    assert!(keys.get("x509-CA-A").await.unwrap().is_none());
}

async fn generates_every_type(keys: &dyn KeyManager) {
    for key_type in KeyType::ALL {
        let key = keys.generate(key_type.name(), key_type).await.unwrap();
        assert_eq!((key.id(), key.key_type()), (key_type.name(), key_type));
        tests::check_signature(&key).await;
        let found = keys.get(key_type.name()).await.unwrap().unwrap();
        assert_eq!(found.public_key_der(), key.public_key_der());
    }
    let ids: Vec<String> = keys.list().await.unwrap().iter().map(|key| key.id().to_string()).collect();
    assert_eq!(ids, ["ec-p256", "ec-p384", "rsa-2048", "rsa-4096"]);
}

async fn replaces_by_id(keys: &dyn KeyManager) {
    let old = keys.get("rsa-2048").await.unwrap().unwrap();
    let new = keys.generate("rsa-2048", KeyType::EcP384).await.unwrap();
    assert_ne!(old.public_key_der(), new.public_key_der());
    let found = keys.get("rsa-2048").await.unwrap().unwrap();
    assert_eq!((found.key_type(), found.public_key_der()), (KeyType::EcP384, new.public_key_der()));
    assert_eq!(keys.list().await.unwrap().len(), 4);
    // A signature that was under way when the key was replaced still comes out right.
    tests::check_signature(&old).await;
    tests::check_signature(&new).await;
}

async fn refuses_an_empty_id(keys: &dyn KeyManager) {
    assert!(matches!(keys.generate("", KeyType::EcP256).await, Err(KeyError::EmptyId)));
    assert_eq!(keys.list().await.unwrap().len(), 4);
}

async fn serves_many_at_once(keys: &dyn KeyManager) {
    let ids: Vec<String> = (0..8).map(|n| format!("many-{n}")).collect();
    let made =
        futures::future::try_join_all(ids.iter().map(|id| keys.generate(id, KeyType::EcP256))).await.unwrap();
    for (id, key) in ids.iter().zip(&made) {
        assert_eq!(keys.get(id).await.unwrap().unwrap().public_key_der(), key.public_key_der());
    }
    assert_eq!(keys.list().await.unwrap().len(), 12);
}
