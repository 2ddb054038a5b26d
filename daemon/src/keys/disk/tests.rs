use super::*;

#[tokio::test]
async fn writes_the_file_of_spire() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let keys = DiskKeys::open(&path).await.unwrap();
    assert!(!path.exists());
    keys.generate("x509-CA-B", KeyType::EcP256).await.unwrap();
    let key = keys.generate("JWT-Signer-A", KeyType::EcP256).await.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split('\n').collect();
    assert_eq!((lines[0], lines[1], lines[4], lines[5]), ("{", "\t\"keys\": {", "\t}", "}"));
    assert!(lines[2].starts_with("\t\t\"JWT-Signer-A\": \"MIG") && lines[2].ends_with("\","));
    assert!(lines[3].starts_with("\t\t\"x509-CA-B\": \"MIG"));
    assert_eq!(lines.len(), 6);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = DiskKeys::open(&path).await.unwrap();
    assert_eq!(again.get("JWT-Signer-A").await.unwrap().unwrap().public_key_der(), key.public_key_der());
}

#[tokio::test]
async fn a_failed_write_leaves_the_old_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let keys = DiskKeys::open(&path).await.unwrap();
    let old = keys.generate("a", KeyType::EcP256).await.unwrap();
    let before = std::fs::read(&path).unwrap();
    // A directory where the temporary file goes: refused even to root.
    std::fs::create_dir(dir.path().join("keys.json.tmp")).unwrap();
    let error = keys.generate("a", KeyType::EcP256).await.unwrap_err();
    assert!(error.to_string().contains("the old keys stay in use"), "{error}");
    assert_eq!(keys.get("a").await.unwrap().unwrap().public_key_der(), old.public_key_der());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_dir(dir.path().join("keys.json.tmp")).unwrap();
    let new = keys.generate("a", KeyType::EcP256).await.unwrap();
    assert_ne!(new.public_key_der(), old.public_key_der());
}

#[tokio::test]
async fn a_damaged_file_is_named_and_never_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    for (text, want) in [
        ("", "the JSON ends too early"),
        ("not json SECRET", "the text is not JSON (line 1"),
        ("[1]", "the JSON is not {\"keys\""),
        ("{\"keys\": {\"x509-CA-A\": 5}}", "the JSON is not {\"keys\""),
        ("{\"keys\": {\"x509-CA-A\": \"SECRET!\"}}", "the key \"x509-CA-A\" is not base64"),
        (
            "{\"keys\": {\"x509-CA-A\": \"U0VDUkVU\"}}",
            "the key \"x509-CA-A\": the private key is not usable PKCS#8",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = DiskKeys::open(&path).await.err().unwrap().to_string();
        assert!(error.contains(want) && error.contains("keys.json is damaged"), "{text}: {error}");
        assert!(!error.contains("SECRET"), "{error}");
    }
    for text in ["{}", "{\"keys\": null}", "{\"keys\": {}, \"later\": 1}"] {
        std::fs::write(&path, text).unwrap();
        assert!(DiskKeys::open(&path).await.unwrap().list().await.unwrap().is_empty());
    }
    let error = DiskKeys::open(dir.path()).await.err().unwrap().to_string();
    assert!(error.starts_with("cannot read the keys in "), "{error}");
}
