//! The status codes that httpd answers with.

/// A status of RFC 9110 section 15 (431: RFC 6585).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// The whole file follows.
    Ok = 200,
    /// The asked-for range of the file follows.
    PartialContent = 206,
    /// The directory's name ends in a slash; `Location` has it.
    MovedPermanently = 301,
    /// The client's copy is current.
    NotModified = 304,
    /// The request is not HTTP, or names no path.
    BadRequest = 400,
    /// The file exists and this server may not read it.
    Forbidden = 403,
    /// No such file.
    NotFound = 404,
    /// A known method that is not GET or HEAD; `Allow` says which are.
    MethodNotAllowed = 405,
    /// The head or the announced body did not arrive in time.
    RequestTimeout = 408,
    /// The target is longer than any path can be.
    UriTooLong = 414,
    /// No byte of the file is in the range; `Content-Range` has the size.
    RangeNotSatisfiable = 416,
    /// The head is longer, or has more fields, than the server reads.
    HeaderFieldsTooLarge = 431,
    /// The file system failed to give what it has.
    InternalServerError = 500,
    /// An unknown method or transfer coding.
    NotImplemented = 501,
    /// Too many connections, or the file system is away.
    ServiceUnavailable = 503,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    VersionNotSupported = 505,
}

impl Status {
    /// The number on the status line.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The phrase on the status line.
    pub fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::PartialContent => "Partial Content",
            Status::MovedPermanently => "Moved Permanently",
            Status::NotModified => "Not Modified",
            Status::BadRequest => "Bad Request",
            Status::Forbidden => "Forbidden",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::RequestTimeout => "Request Timeout",
            Status::UriTooLong => "URI Too Long",
            Status::RangeNotSatisfiable => "Range Not Satisfiable",
            Status::HeaderFieldsTooLarge => "Request Header Fields Too Large",
            Status::InternalServerError => "Internal Server Error",
            Status::NotImplemented => "Not Implemented",
            Status::ServiceUnavailable => "Service Unavailable",
            Status::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}
