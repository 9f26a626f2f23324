// The classical chat server in Go: a goroutine reads each connection, a second one writes what a
// channel brings, and a map under a lock tells who is in a room. It speaks imserver's frames over
// TCP, believes the name in HELLO, and prints the port that it listens on.
//
// What the channel holds when the writer wakes goes out in one write. A client whose channel stays
// full for a moment is dropped.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"
)

const (
	hello, welcome, subscribe, subscribed = 1, 2, 3, 4
	message                               = 7

	headBytes    = 8
	messageBytes = 36 // before the names
	maxBytes     = 1 << 20
	queued       = 256 // messages; then who publishes waits, up to
	patience     = 100 * time.Millisecond
)

type client struct {
	conn  net.Conn
	out   chan []byte
	done  chan struct{} // closed when it is over
	once  sync.Once
	rooms []string // of its reader alone
}

type server struct {
	lock  sync.RWMutex
	rooms map[string]map[*client]struct{}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	s := &server{rooms: map[string]map[*client]struct{}{}}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		c := &client{conn: conn, out: make(chan []byte, queued), done: make(chan struct{})}
		go c.write()
		go s.read(c)
	}
}

func (s *server) read(c *client) {
	defer s.leave(c)
	in := bufio.NewReader(c.conn)
	for {
		frame, err := next(in)
		if err == nil {
			err = s.take(c, frame)
		}
		if err != nil {
			return
		}
	}
}

// A frame of its own, for it goes into channels.
func next(in *bufio.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size < headBytes-4 || size > maxBytes {
		return nil, fmt.Errorf("a frame of %d bytes", size)
	}
	frame := make([]byte, 4+size)
	copy(frame, length[:])
	_, err := io.ReadFull(in, frame[4:])
	return frame, err
}

func (s *server) take(c *client, frame []byte) error {
	switch frame[4] {
	case hello:
		c.send(answer(welcome, frame, `{}`))
	case subscribe:
		var asked struct{ Topic string }
		if err := json.Unmarshal(frame[headBytes:], &asked); err != nil {
			return err
		}
		s.join(c, asked.Topic)
		c.send(answer(subscribed, frame, `{}`))
	case message:
		if len(frame) < messageBytes || len(frame) < messageBytes+int(frame[32]) {
			return fmt.Errorf("a message of %d bytes", len(frame))
		}
		s.publish(frame[messageBytes:messageBytes+int(frame[32])], frame)
	}
	return nil
}

func answer(kind byte, asked []byte, body string) []byte {
	frame := make([]byte, headBytes, headBytes+len(body))
	binary.BigEndian.PutUint32(frame, uint32(headBytes-4+len(body)))
	frame[4], frame[5] = kind, asked[5]
	copy(frame[6:8], asked[6:8])
	return append(frame, body...)
}

func (s *server) join(c *client, topic string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	room := s.rooms[topic]
	if room == nil {
		room = map[*client]struct{}{}
		s.rooms[topic] = room
	}
	room[c] = struct{}{}
	c.rooms = append(c.rooms, topic)
}

func (s *server) publish(topic, frame []byte) {
	s.lock.RLock()
	defer s.lock.RUnlock()
	for c := range s.rooms[string(topic)] {
		c.send(frame)
	}
}

func (s *server) leave(c *client) {
	c.end()
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, topic := range c.rooms {
		delete(s.rooms[topic], c)
		if len(s.rooms[topic]) == 0 {
			delete(s.rooms, topic)
		}
	}
}

func (c *client) send(frame []byte) {
	select {
	case c.out <- frame:
		return
	default:
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case c.out <- frame:
	case <-c.done:
	case <-late.C:
		c.end()
	}
}

func (c *client) write() {
	defer c.end()
	out := bufio.NewWriter(c.conn)
	for {
		select {
		case frame := <-c.out:
			out.Write(frame)
		case <-c.done:
			return
		}
		for waiting := len(c.out); waiting > 0; waiting-- {
			out.Write(<-c.out)
		}
		if out.Flush() != nil {
			return
		}
	}
}

func (c *client) end() {
	c.once.Do(func() {
		close(c.done)
		c.conn.Close()
	})
}
