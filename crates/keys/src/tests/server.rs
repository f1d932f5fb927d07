//! A server that gives one answer of its script to each connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What to do with a connection.
pub(super) enum Reply {
    /// Status, header fields, body.
    Http(u16, &'static str, String),
    /// These bytes, whatever was asked (after a first line or, of KMIP, one message was read).
    Raw(Vec<u8>),
    /// Nothing, and the connection is closed.
    Close,
    /// Nothing, until the client leaves.
    Silence,
}

/// A 200 with a JSON body.
pub(super) fn json(value: serde_json::Value) -> Reply {
    Reply::Http(200, "", value.to_string())
}

pub(super) fn status(status: u16) -> Reply {
    // What a malicious server could say to get it into a log.
    Reply::Http(status, "", r#"{"errors": ["t0ken-from-keystone s3cret"]}"#.to_owned())
}

/// What was asked.
#[derive(Debug)]
pub(super) struct Asked {
    /// `GET /v1/x`
    pub(super) line: String,
    /// `name: value`, names in lower case.
    pub(super) fields: Vec<String>,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter().filter_map(|field| field.split_once(": "));
        fields.find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

pub(super) struct Server {
    address: SocketAddr,
    asked: Receiver<Asked>,
    over: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn http(script: Vec<Reply>) -> Self {
        Self::start(script, None)
    }

    pub(super) fn tls(script: Vec<Reply>, config: ServerConfig) -> Self {
        Self::start(script, Some(Arc::new(config)))
    }

    fn start(script: Vec<Reply>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = channel();
        let over = Arc::new(Mutex::new(false));
        let end = over.clone();
        let thread = std::thread::spawn(move || {
            for reply in script {
                let (stream, _) = listener.accept().unwrap();
                if *end.lock().unwrap() {
                    return;
                }
                // A client that goes away (or fails the handshake) is one of the things tested.
                let served = match &tls {
                    None => serve(stream, &reply),
                    Some(config) => {
                        let connection = ServerConnection::new(config.clone()).unwrap();
                        serve(StreamOwned::new(connection, stream), &reply)
                    }
                };
                if let Some(asked) = served {
                    let _ = tell.send(asked);
                }
            }
        });
        Self { address, asked, over, thread: Some(thread) }
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Ends it; what was asked.
    pub(super) fn finish(mut self) -> Vec<Asked> {
        self.end();
        self.asked.iter().collect()
    }

    fn end(&mut self) {
        *self.over.lock().unwrap() = true;
        // Wakes it if it waits for a client.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

fn serve<S: Read + Write>(mut stream: S, reply: &Reply) -> Option<Asked> {
    let asked = match reply {
        Reply::Http(..) | Reply::Close | Reply::Silence => read_http(&mut stream),
        Reply::Raw(_) => {
            // What isn't read would reset the connection at its end.
            let mut head = [0; 8];
            stream.read_exact(&mut head).ok()?;
            if head[0] == 0x42 {
                let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
                stream.read_exact(&mut vec![0; length]).ok()?;
                Some(Asked { line: String::new(), fields: Vec::new(), body: String::new() })
            } else {
                read_http(&mut head.chain(&mut stream))
            }
        }
    };
    match reply {
        Reply::Http(status, fields, body) => {
            let _ = write!(
                stream,
                "HTTP/1.1 {status} Said\r\n{fields}content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
        Reply::Raw(bytes) => drop(stream.write_all(bytes)),
        Reply::Close => {}
        Reply::Silence => drop(stream.read(&mut [0])),
    }
    let _ = stream.flush();
    asked
}

fn read_http(stream: &mut impl Read) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    if lines.is_empty() {
        return None;
    }
    let line = lines.remove(0).trim_end_matches(" HTTP/1.1").to_owned();
    let fields = lines.iter().filter_map(|line| line.split_once(": "));
    let fields: Vec<_> =
        fields.map(|(name, value)| format!("{}: {value}", name.to_lowercase())).collect();
    let mut asked = Asked { line, fields, body: String::new() };
    let length = asked.field("content-length").map_or(0, |length| length.parse().unwrap());
    reader.take(length).read_to_string(&mut asked.body).ok()?;
    Some(asked)
}
