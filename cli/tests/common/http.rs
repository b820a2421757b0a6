//! A web client that does exactly what it is told: one connection, many requests, answers read one at a time.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

use super::{Reply, WATCHDOG};

/// A connection that stays open.
pub struct Session(BufReader<TcpStream>);

impl Session {
    /// Connects.
    pub fn new(address: &str) -> Session {
        let socket = TcpStream::connect(address).expect("the server listens");
        socket.set_read_timeout(Some(WATCHDOG)).expect("a socket has a timeout");
        Session(BufReader::new(socket))
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        self.0.get_ref()
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the server takes the request");
    }

    /// GET of `target` with more header lines, each ended by CR LF.
    pub fn get(&mut self, target: &str, fields: &str) -> Reply {
        self.ask("GET", target, fields)
    }

    /// A request, and its answer.
    pub fn ask(&mut self, method: &str, target: &str, fields: &str) -> Reply {
        self.write(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes());
        self.answer(method == "HEAD").unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// Reads one answer; that of a HEAD has no body.
    pub fn answer(&mut self, head_only: bool) -> Result<Reply> {
        let cut = || Error::from(ErrorKind::UnexpectedEof);
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(cut)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(cut());
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if !head_only && !matches!(status, 204 | 304) {
            let length = reply.header("content-length").parse().map_err(|_| cut())?;
            reply.body = vec![0; length];
            self.0.read_exact(&mut reply.body)?;
        }
        Ok(reply)
    }

    /// Reads a few bytes of whatever comes.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.0.read_exact(bytes)
    }

    /// Whatever still comes.
    pub fn rest(&mut self) -> impl Read + '_ {
        &mut self.0
    }

    /// Whether the server has closed in order, without another byte.
    pub fn is_at_end(&mut self) -> bool {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }
}

impl Reply {
    /// A header's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }
}
