//! What a request is answered with.

use std::sync::Arc;

use bytes::Bytes;
use handover_api::{AuditSource, query};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use super::{
    assets, events,
    guard::{check, cookie, protect},
    listen::Page,
};
use crate::{
    access::{Peer, Role},
    control::{self, Asked, Backend, Caller, ControlResponse, Refusal},
    ownership,
};

/// The name of the cookie.
const COOKIE: &str = "handover-session";

/// Calls of the control socket that the page may make. Others are not answered: it needs neither
/// the end of the host, nor links for further browsers.
const CALLS: &[&str] = &[
    query::STATUS,
    query::HISTORY,
    query::DEPLOY,
    query::ROLLBACK,
    query::PROMOTE,
    query::ABORT,
    query::CANARY_PAUSE,
    query::CANARY_RESUME,
    query::SHADOW,
    query::STOP,
    query::START,
    query::RESTART,
    query::PAUSE,
    query::RESUME,
    query::HOLDERS,
    query::TENANTS,
    query::JOBS,
    query::CANCEL,
    query::RETRY,
    query::SCHEDULES,
    query::LEASES,
    query::RELOAD,
    query::MOVE,
    query::SETTINGS,
    query::SET,
    query::LOGS,
    query::AUDIT,
    query::DRAIN_NODE,
];

/// What the page may ask for of the state of an app: which keys there are, and never their values.
const OF_STATE: &[&str] = &["keys", "stats"];

/// `GET /`
#[derive(Deserialize)]
struct Opened {
    token: Option<String>,
}

/// Who the page is of.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Who {
    /// The user who asked for the link.
    user: String,
    /// Whether it may do more than look.
    operates: bool,
}

/// Answers a request.
pub(super) async fn answer<B: Backend>(
    request: Request<Incoming>,
    page: Page<B>,
) -> ControlResponse {
    let answered = answer_checked(request, page).await;
    let mut response = answered.unwrap_or_else(|(status, why)| text(status, why));
    protect(response.headers_mut());
    response
}

async fn answer_checked<B: Backend>(
    request: Request<Incoming>,
    page: Page<B>,
) -> Result<ControlResponse, (StatusCode, String)> {
    check(&request).map_err(|why| (StatusCode::FORBIDDEN, why))?;
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if path == "/" && method == Method::GET {
        return begin(&request, &page);
    }
    let in_session = path
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .and_then(|(id, rest)| {
            let secret = cookie(request.headers(), COOKIE)?;
            let peer = page.sessions.of(id, secret)?;
            Some((id, rest, peer))
        });
    let Some((id, rest, peer)) = in_session else {
        return Err(nobody());
    };
    let caller = Caller::admitted(peer, page.access.load_full()).await;
    let names = caller.names().await;
    if let Err(refusal) = caller.may(Role::Observe, &names) {
        return Ok(refusal.into_response());
    }
    if let Some(asset) = assets::find(rest) {
        only(&method, Method::GET)?;
        let mut response = text(StatusCode::OK, asset.text);
        let kind = HeaderValue::from_static(asset.kind);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        return Ok(response);
    }
    match rest {
        "events" => {
            only(&method, Method::GET)?;
            let who = who(peer, caller.role).await;
            Ok(events::stream(request.headers(), (who, peer), id, page))
        }
        "end" => {
            only(&method, Method::POST)?;
            page.sessions.end(id);
            Ok(text(StatusCode::OK, "The session has ended.\n"))
        }
        _ => bridge(request, rest, peer, caller, page).await,
    }
}

/// Passes a call on to those of the control socket.
async fn bridge<B: Backend>(
    mut request: Request<Incoming>,
    rest: &str,
    peer: Peer,
    caller: Caller,
    page: Page<B>,
) -> Result<ControlResponse, (StatusCode, String)> {
    let call = format!("/{rest}");
    let of_operation = call.strip_prefix(query::OPERATIONS);
    let of_state = call.strip_prefix(query::STATE);
    let of_state = of_state.and_then(|rest| rest.split_once('/'));
    let is_known = CALLS.contains(&&*call)
        || of_operation.is_some_and(|id| !id.is_empty())
        || of_state.is_some_and(|(_, what)| OF_STATE.contains(&what));
    let mut target = call;
    if let Some(query) = request.uri().query() {
        target.push('?');
        target.push_str(query);
    }
    let (true, Ok(uri)) = (is_known, target.parse::<Uri>()) else {
        return Err((StatusCode::NOT_FOUND, "there is nothing here\n".to_owned()));
    };
    *request.uri_mut() = uri;
    let asked = Arc::new(Asked::by(peer, None, AuditSource::Dashboard, page.shutdown));
    let names = caller.names().await;
    let may = |needed| caller.may(needed, &names);
    let answered = control::answer(request, page.backend, may, &asked).await;
    Ok(answered.unwrap_or_else(Refusal::into_response))
}

/// Makes a session out of a token.
fn begin<B>(
    request: &Request<Incoming>,
    page: &Page<B>,
) -> Result<ControlResponse, (StatusCode, String)> {
    let asked = serde_urlencoded::from_str(request.uri().query().unwrap_or_default());
    let Ok(Opened { token: Some(token) }) = asked else {
        return Err(nobody());
    };
    let begun = page.sessions.begin(&token).map_err(|error| {
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("no session can be begun: {error}\n"),
        )
    })?;
    let Some(session) = begun else {
        return Err((
            StatusCode::UNAUTHORIZED,
            "this link was used, or is too old: `handover dashboard` prints another one\n"
                .to_owned(),
        ));
    };
    // No redirect: its target would get no cookie where a page of another site has the link, such
    // as a terminal in a browser.
    let path = format!("/{}/", session.id);
    let mut response = text(
        StatusCode::OK,
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"0; url={path}\">\
             <link rel=\"icon\" href=\"data:,\"><title>handover</title><p><a href=\"{path}\">To the dashboard</a></p></html>\n"
        ),
    );
    let cookie = format!(
        "{COOKIE}={}; Path={path}; HttpOnly; SameSite=Strict",
        session.secret
    );
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    if let Ok(cookie) = cookie.parse() {
        headers.insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

async fn who(peer: Peer, role: Role) -> Who {
    let user = tokio::task::spawn_blocking(move || ownership::user_name(peer.uid)).await;
    Who {
        user: user.unwrap_or_else(|_| peer.uid.to_string()),
        operates: role == Role::Operate,
    }
}

fn nobody() -> (StatusCode, String) {
    let why = "this page is for who has a session: `handover dashboard` prints a link to one\n";
    (StatusCode::UNAUTHORIZED, why.to_owned())
}

fn only(method: &Method, wanted: Method) -> Result<(), (StatusCode, String)> {
    if *method == wanted {
        return Ok(());
    }
    let why = format!("this takes {wanted}, and it was {method}\n");
    Err((StatusCode::METHOD_NOT_ALLOWED, why))
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> ControlResponse {
    let mut response = ControlResponse::new(Either::Left(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
