//! Owns how names become numbers: a static binary asks files and DNS, nothing else.
//!
//! glibc's name service loads what /etc/nsswitch.conf names (`systemd`, `resolve`, `myhostname`, `sss`) as
//! shared libraries, and a static program that does so crashes, or needs the very glibc it was built with.
//! `files` and `dns` are part of libc itself since 2.34, so these are all that is asked.

/// Restricts the look-ups of this process. To be called before the first one, and once.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
#[allow(unsafe_code, reason = "glibc's function for it has no safe wrapper")]
pub fn files_and_dns_only() {
    use std::ffi::{CStr, c_char, c_int};
    unsafe extern "C" {
        // nss.h, a GNU extension.
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    const LOOKUPS: &[(&CStr, &CStr)] = &[
        (c"hosts", c"files dns"),
        (c"passwd", c"files"),
        (c"group", c"files"),
        (c"initgroups", c"files"),
        (c"services", c"files"),
    ];
    for (database, services) in LOOKUPS {
        // SAFETY: both are NUL-terminated and live for ever; no other thread runs yet.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}

/// A dynamic program may use whatever the machine has.
#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
pub fn files_and_dns_only() {}
