// Asks a Workload API for X.509 material and JWT-SVIDs through go-spiffe, does mTLS with it, and prints one JSON
// object with what it saw. The socket comes from SPIFFE_ENDPOINT_SOCKET.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type svid struct {
	ID     string `json:"id"`
	Chain  int    `json:"chain"`
	Serial string `json:"serial"`
	Hint   string `json:"hint"`
}

type seen struct {
	Svids   []svid         `json:"svids"`
	Bundles map[string]int `json:"bundles"`
}

type report struct {
	Fetched seen   `json:"fetched"`
	Updates []seen `json:"updates"`
	Peer    string `json:"peer"`
	JWT     tokens `json:"jwt"`
}

type tokens struct {
	IDs       []string       `json:"ids"`
	One       string         `json:"one"`
	Verified  []string       `json:"verified"`
	Validated []string       `json:"validated"`
	Refused   string         `json:"refused"`
	Keys      map[string]int `json:"keys"`
}

type watcher struct {
	updates chan *workloadapi.X509Context
	errors  chan error
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.updates <- c }
func (w *watcher) OnX509ContextWatchError(err error) {
	select {
	case w.errors <- err:
	default:
	}
}

func main() {
	updates := flag.Int("updates", 1, "how many streamed contexts to wait for")
	seconds := flag.Int("seconds", 60, "how long to wait for them")
	flag.Parse()
	if err := run(*updates, time.Duration(*seconds)*time.Second); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(wanted int, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	fetched, err := client.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	for _, s := range fetched.SVIDs {
		if _, _, err := x509svid.Verify(s.Certificates, fetched.Bundles); err != nil {
			return fmt.Errorf("%s does not verify to its bundle: %w", s.ID, err)
		}
	}
	out := report{Fetched: look(fetched)}
	if out.JWT, err = jwts(ctx, client); err != nil {
		return err
	}

	w := &watcher{updates: make(chan *workloadapi.X509Context, wanted), errors: make(chan error, 1)}
	go func() { _ = client.WatchX509Context(ctx, w) }()
	for len(out.Updates) < wanted {
		select {
		case update := <-w.updates:
			out.Updates = append(out.Updates, look(update))
		case err := <-w.errors:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%d of %d updates came in time", len(out.Updates), wanted)
		}
	}

	if out.Peer, err = mutualTLS(ctx); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func look(c *workloadapi.X509Context) seen {
	s := seen{Bundles: map[string]int{}}
	for _, v := range c.SVIDs {
		s.Svids = append(s.Svids, svid{v.ID.String(), len(v.Certificates), v.Certificates[0].SerialNumber.String(), v.Hint})
	}
	for _, b := range c.Bundles.Bundles() {
		s.Bundles[b.TrustDomain().Name()] = len(b.X509Authorities())
	}
	return s
}

// jwts gets tokens for two audiences, judges them by the bundle and asks the agent to, and has one refused.
func jwts(ctx context.Context, client *workloadapi.Client) (tokens, error) {
	out := tokens{Keys: map[string]int{}}
	params := jwtsvid.Params{Audience: "reports", ExtraAudiences: []string{"billing"}}
	svids, err := client.FetchJWTSVIDs(ctx, params)
	if err != nil {
		return out, err
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return out, err
	}
	for _, b := range bundles.Bundles() {
		out.Keys[b.TrustDomain().Name()] = len(b.JWTAuthorities())
	}
	for _, s := range svids {
		out.IDs = append(out.IDs, s.ID.String())
		verified, err := jwtsvid.ParseAndValidate(s.Marshal(), bundles, []string{"reports"})
		if err != nil {
			return out, err
		}
		out.Verified = append(out.Verified, verified.ID.String())
		validated, err := client.ValidateJWTSVID(ctx, s.Marshal(), "billing")
		if err != nil {
			return out, err
		}
		out.Validated = append(out.Validated, validated.ID.String())
		params.Subject = s.ID
	}
	one, err := client.FetchJWTSVID(ctx, params)
	if err != nil {
		return out, err
	}
	out.One = one.ID.String()
	if _, err := client.ValidateJWTSVID(ctx, one.Marshal(), "other"); err != nil {
		out.Refused = err.Error()
	}
	return out, nil
}

// mutualTLS connects two ends with sources on the same socket and returns the ID the client saw.
func mutualTLS(ctx context.Context) (string, error) {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return "", err
	}
	defer source.Close()

	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0",
		spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeAny(), source))
	if err != nil {
		return "", err
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, err = conn.Write([]byte("hello"))
			conn.Close()
		}
		served <- err
	}()

	conn, err := spiffetls.DialWithMode(ctx, "tcp", listener.Addr().String(),
		spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeAny(), source))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.ReadAll(conn); err != nil {
		return "", err
	}
	id, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return "", err
	}
	return id.String(), <-served
}
