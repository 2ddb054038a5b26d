//! Requests and messages that nobody sane sends.

use bytes::Bytes;
use finial_tests::raw;
use finial_tests::world::World;
use tonic::Code;

/// Every method, called with truncated, oversized and random bytes: a clear status, and the server lives.
#[tokio::test(start_paused = true)]
async fn no_method_falls_over_garbage() {
    let world = World::new().await;
    let network = world.anonymous();
    let truncated = Bytes::from_static(&[0x0a, 0xff, 0x7f, 0x01]);
    let noise: Bytes =
        (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>().into();
    let oversized: Bytes = vec![0x0a; 5 * 1024 * 1024].into();
    for (service, method) in finial_proto::methods() {
        let path = format!("/{service}/{method}");
        for (what, body) in [("truncated", &truncated), ("noise", &noise), ("oversized", &oversized)] {
            for channel in [&world.admin(), &network] {
                let Err(status) = raw::call(channel, &path, body.clone(), &[]).await else {
                    panic!("{path} took {what} bytes for a request");
                };
                assert!(
                    !matches!(status.code(), Code::Ok | Code::Unknown | Code::Unavailable),
                    "{path}, {what}: {status}"
                );
            }
        }
    }
    world.register("node", "still-works", &["unix:uid:1".to_owned()]).await;
}
