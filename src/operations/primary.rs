//! Owns what only a primary does: a connection to it, or who the primary is.

use super::enslave::here::has_standby_file;
use super::standby;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::postgres::recovery::Conninfo;
use crate::sql::{Db, Target};

/// Connects to this instance's server; refuses on a standby, where `what` (a noun) is its primary's.
pub fn connect(instance: &Instance, what: &'static str) -> Result<Db> {
    let data = instance.data_directory()?;
    let refuse = |conninfo: Option<Conninfo>| Error::OnStandby {
        instance: instance.name.clone(),
        what,
        primary: conninfo.as_ref().and_then(address),
    };
    // Its files first: a standby may not let us in, for its primary has another password now.
    if has_standby_file(&data) {
        return Err(refuse(standby::primary_conninfo_in_files(&data)?));
    }
    let mut db = Db::connect(&Target::local(instance)?)?;
    if db.in_recovery()? {
        return Err(refuse(standby::primary_conninfo(&mut db, &data)?));
    }
    Ok(db)
}

/// `host:port` of the server that a connection string leads to.
pub fn address(conninfo: &Conninfo) -> Option<String> {
    Some(format!("{}:{}", conninfo.get("host")?, conninfo.get("port").unwrap_or("5432")))
}
