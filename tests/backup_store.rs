//! Where backups lie: a directory and S3; their bytes on the way in and out, sealed, checked, resumed.
mod common;

use common::*;

#[test]
fn the_s3_server_of_the_tests() {
    let site = Site::new();
    let s3 = S3::start(&site);
    s3.create_bucket("shop");
    s3.put("shop", "backups/b001.dump", b"a dump");
    assert_eq!(s3.keys("shop"), ["backups/b001.dump"]);
    s3.flip("shop", "backups/b001.dump", 0);
    assert_eq!(s3.get("shop", "backups/b001.dump"), b"` dump");
    assert!(s3.uploads("shop").is_empty());
    assert_eq!(Pg::full18().major, 18);
}
