package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/caddyserver/xcaddy"
)

// portgateModule is the module of this checkout.
const portgateModule = "github.com/portgate/caddy-portgate"

// ReadRecipe reads xcaddy.json from the checkout and points its Portgate plugin at the checkout
// itself.
//
// The file has no version for that plugin, so that it means "the latest" to whoever takes it
// elsewhere. Here go get needs one even though the folder replaces it; v0.0.0 is never looked up.
func ReadRecipe(checkout string) (xcaddy.Builder, error) {
	checkout, err := filepath.Abs(checkout)
	if err != nil {
		return xcaddy.Builder{}, err
	}
	path := filepath.Join(checkout, "xcaddy.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return xcaddy.Builder{}, err
	}

	var recipe xcaddy.Builder
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields() // a misspelt field would otherwise build something else
	if err := decoder.Decode(&recipe); err != nil {
		return xcaddy.Builder{}, fmt.Errorf("%s: %w", path, err)
	}

	for i, plugin := range recipe.Plugins {
		if plugin.PackagePath != portgateModule {
			continue
		}
		recipe.Plugins[i].Version = "v0.0.0"
		recipe.Replacements = append(recipe.Replacements, xcaddy.NewReplace(portgateModule, checkout))
		return recipe, nil
	}
	return xcaddy.Builder{}, fmt.Errorf("%s: plugins: expected %q among them", path, portgateModule)
}
