//! SVIDs that chain to the enterprise's own root.

use std::time::Duration;

use finial_tests::enterprise::{Enterprise, Files, Intermediate};
use finial_tests::world::{Shape, World, my_uid};

fn with_upstream(files: &Files) -> Shape {
    let block = format!(
        r#"UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = {:?} key_file_path = {:?} bundle_file_path = {:?} }} }}"#,
        files.cert.display().to_string(),
        files.key.display().to_string(),
        files.bundle.display().to_string()
    );
    Shape { server_plugins: block, ..Shape::default() }
}

#[tokio::test(start_paused = true)]
async fn chains_carry_every_intermediate_and_the_bundle_only_the_root() {
    let folder = tempfile::tempdir().unwrap();
    let enterprise = Enterprise::new(World::beginning());
    let files = enterprise.give(folder.path(), &Intermediate::default());
    let world = World::in_folder(folder, with_upstream(&files)).await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;

    let context = node.me().fetch(&world.clock).await;
    assert_eq!(context.bundle, [enterprise.root_der().to_vec()]);
    assert_eq!(context.svid("web").chain().len(), 3, "leaf, the server's CA, the enterprise's intermediate");
}

#[tokio::test(start_paused = true)]
async fn broken_upstream_files_leave_the_running_ca_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let enterprise = Enterprise::new(World::beginning());
    let files = enterprise.give(folder.path(), &Intermediate::default());
    let good = std::fs::read(&files.cert).unwrap();
    let world = World::in_folder(folder, with_upstream(&files)).await;
    let node = world.node("node").await;
    world.register("node", "web", &[my_uid()]).await;
    let mut updates = node.me().open().await;
    let issuer = updates.next(&world.clock).await.svid("web").authority_key_id();

    // Broken through the time when the next CA is prepared; mended before the present one ends.
    std::fs::write(&files.cert, "not a certificate").unwrap();
    let mended_at = world.clock.unix() + 18 * 3600;
    while world.clock.unix() < mended_at {
        let context = updates.next(&world.clock).await;
        assert_eq!(context.svid("web").authority_key_id(), issuer);
    }
    std::fs::write(&files.cert, good).unwrap();
    let end = world.clock.unix() + 24 * 3600;
    let mut last = issuer.clone();
    while world.clock.unix() < end {
        last = updates.next(&world.clock).await.svid("web").authority_key_id();
    }
    assert_ne!(last, issuer, "the next CA came when the files were mended");
}

#[tokio::test(start_paused = true)]
async fn a_server_does_not_start_on_unusable_upstream_files() {
    let enterprise = Enterprise::new(World::beginning());
    let stranger = Enterprise::new(World::beginning());
    let short = Intermediate { lifetime: Duration::from_secs(1), ..Intermediate::default() };
    let no_more = Intermediate { path_len: Some(0), ..Intermediate::default() };
    type Break = fn(&Files, &Enterprise);
    let cases: [(&str, &Intermediate, Break); 6] = [
        ("upstream.pem", &Intermediate::default(), |files, _| std::fs::remove_file(&files.cert).unwrap()),
        ("upstream.key", &Intermediate::default(), |files, _| std::fs::write(&files.key, "no key").unwrap()),
        ("upstream.key", &Intermediate::default(), |files, _| {
            std::fs::write(&files.key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        }),
        ("bundle_file_path", &Intermediate::default(), |files, stranger| {
            let elsewhere = tempfile::tempdir().unwrap();
            let other = stranger.give(elsewhere.path(), &Intermediate::default());
            std::fs::copy(other.bundle, &files.bundle).unwrap();
        }),
        ("expired", &short, |_, _| {}),
        ("path length", &no_more, |_, _| {}),
    ];
    for (names, intermediate, break_it) in cases {
        let folder = tempfile::tempdir().unwrap();
        let files = enterprise.give(folder.path(), intermediate);
        break_it(&files, &stranger);
        let mut world = World::idle(folder, with_upstream(&files));
        world.clock.sleep(Duration::from_secs(2)).await;
        let refusal = world.try_start_server().await.err().unwrap_or_else(|| panic!("{names}: it starts"));
        assert!(refusal.contains(names), "{names}: {refusal}");
    }
}
