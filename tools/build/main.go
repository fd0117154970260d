// Command build makes the Caddy binary that xcaddy.json describes, with the Portgate of this
// checkout in it:
//
//	cd tools && go run ./build -o ../bin/caddy
//
// It calls the library behind the xcaddy command, so what it builds is what
// `xcaddy build --with ...` gives an operator.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
)

func main() {
	checkout := flag.String("checkout", "..", "folder of the Portgate checkout")
	output := flag.String("o", "../bin/caddy", "binary to write")
	flag.Parse()

	recipe, err := ReadRecipe(*checkout)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err = recipe.Build(ctx, *output)
	stop()
	if err != nil {
		log.Fatalf("building %s: %v", *output, err)
	}
}
