//! Owns what the errors of S3 and of the way to it mean for a person.

use super::Place;
use crate::error::{Error, printable};
use object_store::client::{HttpError, HttpErrorKind};

/// Nothing of this name is there, or no such upload.
pub fn is_missing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. }) && code(error).as_deref() != Some("NoSuchBucket")
}

/// Trying again cannot help: the service has answered with a refusal.
pub fn is_final(error: &object_store::Error) -> bool {
    let again = matches!(error, object_store::Error::Generic { .. } | object_store::Error::JoinError { .. });
    !again
        || code(error)
            .is_some_and(|code| !matches!(&*code, "InternalError" | "SlowDown" | "ServiceUnavailable"))
}

/// The service's own word for it.
pub fn code(error: &object_store::Error) -> Option<String> {
    element(&error.to_string(), "Code")
}

fn element(text: &str, name: &str) -> Option<String> {
    let rest = text.split_once(&format!("<{name}>"))?.1;
    Some(rest.split_once(&format!("</{name}>"))?.0.trim().chars().take(300).collect())
}

/// As one of our errors. `action` is an infinitive: "read", "write".
pub fn explain(place: &Place, action: &'static str, error: &object_store::Error) -> Error {
    let text = error.to_string();
    let code = element(&text, "Code");
    let said = match (&code, element(&text, "Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.clone(),
        _ => deepest(error),
    };
    let why = printable(&said);
    let name = place.to_string();
    match code.as_deref() {
        Some("NoSuchBucket") => {
            return Error::StoreBucket { bucket: place.bucket.clone(), endpoint: place.endpoint() };
        }
        Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            return Error::StoreRegion { bucket: place.bucket.clone(), region: place.region.clone() };
        }
        _ if text.contains("incorrectly configured region") => {
            return Error::StoreRegion { bucket: place.bucket.clone(), region: place.region.clone() };
        }
        Some("RequestTimeTooSkewed") => {
            return Error::Store { place: name, action, why: "the clock of this machine is wrong".into() };
        }
        _ => {}
    }
    // Listing has errors of its own, that say no more than the status; S3 says 400 of a token that is too old.
    const DENIED: [&str; 7] = [
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    ];
    match error {
        _ if code.as_deref().is_some_and(|code| DENIED.contains(&code)) => {
            Error::StoreDenied { place: name, why }
        }
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            // A HEAD has no body that says more.
            let why = if code.is_some() { why } else { "the service says no more".into() };
            Error::StoreDenied { place: name, why }
        }
        object_store::Error::NotFound { path, .. } => Error::NoObject { place: name, name: path.clone() },
        _ if http_kind(error).is_some_and(|kind| kind != HttpErrorKind::Decode) => {
            Error::StoreUnreachable { place: name, endpoint: place.endpoint(), why }
        }
        _ => Error::Store { place: name, action, why },
    }
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn http_kind(error: &object_store::Error) -> Option<HttpErrorKind> {
    chain(error).find_map(|error| error.downcast_ref::<HttpError>().map(HttpError::kind))
}

fn deepest(error: &object_store::Error) -> String {
    chain(error).last().map_or_else(|| error.to_string(), ToString::to_string)
}
