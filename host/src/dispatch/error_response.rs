//! The answers of the host itself: plain text that says what is the matter and which app it is
//! about.

use std::time::Duration;

use bytes::Bytes;
use handover_api::AppName;
use http::{HeaderValue, Response, StatusCode, Version, header};

use super::{body::ResponseBody, malformed::Malformed, route::Down};
use crate::generation::Spec;

fn plain(status: StatusCode, text: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(Bytes::from(format!(
        "{status}: {text}\n"
    ))));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// 400: the request is not to be taken for anything. Over HTTP/1 its connection ends with that:
/// nothing that follows it is read as another request.
#[cold]
pub(crate) fn bad_request(version: Version, why: Malformed) -> Response<ResponseBody> {
    let mut response = plain(StatusCode::BAD_REQUEST, why.to_string());
    if version <= Version::HTTP_11 {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// 308: the request is to go to `location`.
pub(crate) fn redirect(location: HeaderValue) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// 404: no app answers there.
pub(super) fn no_app() -> Response<ResponseBody> {
    plain(
        StatusCode::NOT_FOUND,
        "no app answers at this address".to_owned(),
    )
}

/// 503: nothing answers for the app, for a reason.
pub(super) fn empty(app: &AppName, down: &Down) -> Response<ResponseBody> {
    let text = match down {
        Down::Version(version) => format!("the app {app} {version} has not come up"),
        Down::Empty => format!("nothing of the app {app} has been deployed yet"),
        Down::Stopped(message) if message.is_empty() => format!("the app {app} is stopped"),
        Down::Stopped(message) => return stopped(message),
    };
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// 503 with the message of whoever stopped the app. One that begins with `<` is HTML.
fn stopped(message: &str) -> Response<ResponseBody> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, String::new());
    let mut body = message.to_owned();
    if !body.ends_with('\n') {
        body.push('\n');
    }
    *response.body_mut() = ResponseBody::full(Bytes::from(body));
    if message.trim_start().starts_with('<') {
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
    }
    response
}

/// 429: of whoever asks there are too many requests; after `wait` it may be tried again.
pub(super) fn too_many(app: &AppName, wait: Duration) -> Response<ResponseBody> {
    let mut response = plain(
        StatusCode::TOO_MANY_REQUESTS,
        format!("too many requests for the app {app}: try again later"),
    );
    // Whole seconds, never too early.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, seconds.max(1).into());
    response
}

/// 503: the app is paused, and the request has waited for as long as it may, or too many wait.
pub(super) fn paused(app: &AppName) -> Response<ResponseBody> {
    plain(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("the app {app} is paused"),
    )
}

/// 502: the app gave no answer.
pub(super) fn no_answer(spec: &Spec) -> Response<ResponseBody> {
    plain(
        StatusCode::BAD_GATEWAY,
        format!("the app {} {} gave no answer", spec.app, spec.version),
    )
}

/// 500: the app panicked.
pub(super) fn panicked(spec: &Spec) -> Response<ResponseBody> {
    plain(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("the app {} {} panicked", spec.app, spec.version),
    )
}

/// 503: the drain deadline passed before the app had answered.
pub(super) fn expired(spec: &Spec) -> Response<ResponseBody> {
    let text = format!(
        "the app {} {} was replaced, and did not answer before its deadline",
        spec.app, spec.version
    );
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// 503: an operator has cancelled the request.
pub(super) fn cancelled(spec: &Spec) -> Response<ResponseBody> {
    let text = format!("the request to the app {} was cancelled", spec.app);
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// 503: as many requests as the app may take are under way, and as many as may wait do.
pub(super) fn busy(app: &AppName) -> Response<ResponseBody> {
    plain(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("the app {app} has as many requests as it may take"),
    )
}

/// 503: the host ends, and with it the threads of the app.
pub(super) fn ends(app: &AppName) -> Response<ResponseBody> {
    plain(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("the host of the app {app} ends"),
    )
}

/// 504: the app did not answer in time.
pub(super) fn timed_out(app: &AppName) -> Response<ResponseBody> {
    plain(
        StatusCode::GATEWAY_TIMEOUT,
        format!("the app {app} did not answer in time"),
    )
}
