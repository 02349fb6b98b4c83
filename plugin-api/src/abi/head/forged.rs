//! Heads that no honest other side sends, for the tests here and for `tests/fuzz`.
//!
//! What no receiver could find out is sound even here: slices point to memory, and the values of
//! fields are such.

use abi_stable::std_types::RStr;

use super::{
    super::{
        headers::Field,
        lent::{Lent, Size},
    },
    Connection, Peer, RequestHead, RequestHead1, RequestHead2, ResponseHead,
};

/// What a head says.
#[derive(Clone, Debug)]
pub struct Forged<'a> {
    /// Path and query, of a request.
    pub target: &'a [u8],
    /// The method, of a request.
    pub method: &'a [u8],
    /// The scheme, of a request.
    pub scheme: &'a [u8],
    /// The authority, of a request.
    pub authority: &'a [u8],
    /// Index, name and value of each field.
    pub fields: Vec<(u16, &'a [u8], http::HeaderValue)>,
    /// The family of the client's address.
    pub family: u8,
    /// The version of HTTP, of a request.
    pub version: u8,
    /// The status, of a response.
    pub status: u16,
    /// The bytes that it claims to have.
    pub size: u32,
}

/// Text that may be none.
fn text(bytes: &[u8]) -> RStr<'_> {
    // SAFETY: the memory is there; whoever takes it in is tested for not believing that it is
    // UTF-8.
    unsafe { RStr::from_raw_parts(bytes.as_ptr(), bytes.len()) }
}

impl Forged<'_> {
    /// Lends it as the head of a request.
    pub fn request<R>(&self, f: impl FnOnce(Lent<'_, RequestHead<'_>>) -> R) -> R {
        let fields = self.fields();
        let address = Peer {
            address: [1; 16],
            port: 80,
            family: self.family,
        };
        let connection = Connection {
            size: Size::of::<Connection<'_>>(),
            local: address,
            tls_version: self.status,
            server_name: text(self.authority),
            client_certificate: self.target.into(),
        };
        let head = RequestHead2 {
            head: RequestHead1 {
                head: RequestHead {
                    size: Size::forged(self.size),
                    target: text(self.target),
                    method: text(self.method),
                    scheme: text(self.scheme),
                    authority: text(self.authority),
                    fields: fields[..].into(),
                    peer: address,
                    version: self.version,
                },
                protocol: text(self.target),
            },
            connection: Lent::of(&connection),
        };
        // SAFETY: it begins with a `RequestHead`, and what a size beyond its own promises is read
        // by nobody yet.
        f(unsafe { Lent::longer(&head) })
    }

    /// Lends it as the head of a response.
    pub fn response<R>(&self, f: impl FnOnce(Lent<'_, ResponseHead<'_>>) -> R) -> R {
        let fields = self.fields();
        f(Lent::of(&ResponseHead {
            size: Size::forged(self.size),
            fields: fields[..].into(),
            status: self.status,
        }))
    }

    /// Takes it in as a request and as a response, both of which must be sound: what came out
    /// crosses once more unchanged.
    ///
    /// # Panics
    /// When it does not.
    pub fn take_in(&self) {
        let mut request = http::Request::new(());
        if self.request(|head| head.fill(&mut request)).is_ok() {
            let target = request
                .uri()
                .path_and_query()
                .map_or("", |target| target.as_str());
            let mut again = http::Request::new(());
            let nobody = Peer::from(None);
            let connection = Connection::plain(nobody);
            RequestHead::lend(&request, target, "", nobody, &connection, |head| {
                head.fill(&mut again)
            })
            .expect("what was taken in can be sent");
            let (one, two) = (request.uri(), again.uri());
            assert_eq!(
                (one.scheme(), one.authority(), one.query()),
                (two.scheme(), two.authority(), two.query())
            );
            // No path at all is `/` on the other side.
            assert!(one.path() == two.path() || one.path().is_empty() && two.path() == "/");
            assert_eq!(
                (request.method(), request.version(), request.headers()),
                (again.method(), again.version(), again.headers())
            );
        }
        self.request(|head| {
            let Some(connection) = head.connection() else {
                return;
            };
            assert_eq!(connection.client_certificate(), self.target);
            let name = std::str::from_utf8(self.authority).unwrap_or_default();
            assert_eq!(connection.server_name(), name);
            assert_eq!(connection.local().is_some(), matches!(self.family, 4 | 6));
        });
        let mut response = http::Response::new(());
        let body = self.response(|head| head.fill(&mut response, self.target));
        assert_eq!(body, self.target);
        let mut again = http::Response::new(());
        let parts = response.clone().into_parts().0;
        ResponseHead::lend(&parts, None, b"", |head| head.fill(&mut again, &[]));
        assert_eq!(
            (response.status(), response.headers()),
            (again.status(), again.headers())
        );
    }

    fn fields(&self) -> Vec<Field<'_>> {
        self.fields
            .iter()
            .map(|(index, name, value)| Field {
                value: value.as_bytes().into(),
                name: text(name),
                index: *index,
                flags: 0xfe,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_honest_side_sends_is_refused_or_left_out() {
        let honest = Forged {
            target: b"/a?b=c",
            method: b"GET",
            scheme: b"",
            authority: b"",
            fields: Vec::new(),
            family: 4,
            version: 11,
            status: 200,
            size: 0,
        };
        honest.take_in();
        let no_target = Forged {
            target: b"#",
            ..honest.clone()
        };
        no_target.take_in();
        let mut request = http::Request::new(());
        for forged in [
            Forged {
                method: b"G T",
                ..honest.clone()
            },
            Forged {
                method: b"\xff",
                ..honest.clone()
            },
            Forged {
                target: b"/\xff\xfe a",
                ..honest.clone()
            },
            Forged {
                authority: b"a b",
                ..honest.clone()
            },
            Forged {
                scheme: b"1\xff",
                authority: b"a",
                ..honest.clone()
            },
        ] {
            forged.take_in();
            assert!(
                forged.request(|head| head.fill(&mut request)).is_err(),
                "{forged:?}"
            );
        }
        let value = http::HeaderValue::from_static("x");
        let forged = Forged {
            fields: vec![
                (80, b"", value.clone()),
                (81, b"", value.clone()),
                (u16::MAX - 1, b"", value.clone()),
                (u16::MAX, b"", value.clone()),
                (u16::MAX, b"no name", value.clone()),
                (u16::MAX, b"\xff", value.clone()),
                (u16::MAX, b"x-name", value),
            ],
            family: 9,
            version: 77,
            status: 7,
            size: u32::MAX,
            ..honest
        };
        forged.take_in();
        assert!(forged.request(|head| head.peer()).is_none());
        let mut response = http::Response::new(());
        forged.response(|head| head.fill(&mut response, &[]));
        assert_eq!(response.status(), 500);
        let names: Vec<_> = response.headers().keys().collect();
        assert_eq!(names, ["x-xss-protection", "x-name"]);
    }
}
