//! How much memory the allocator may hold on to.

/// How many heaps the threads share. More of them let threads allocate side by side, but each keeps what it once
/// held: with the C library's own choice, eight for each processor, a server with 10,000 entries holds a fifth more
/// memory and signs no faster.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: i32 = 2;

/// Limits the heaps of the C library. To be called before there are threads; once a program.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "mallopt(3) has no safe wrapper")]
pub fn share_heaps() {
    // SAFETY: mallopt takes two integers, keeps no pointer, and no other thread allocates yet. It refuses what it does
    // not know, which leaves the default.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS) };
}

/// Other C libraries have other allocators.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_heaps() {}
